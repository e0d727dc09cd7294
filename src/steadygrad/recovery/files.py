"""Bytes on disk that are whole or not there: written atomically, checked when read."""

from __future__ import annotations

import gc
import hashlib
import os
import re
import weakref
from pathlib import Path

from steadygrad.errors import UsageError

MAGIC = b"steadygrad snapshot 1\n"
_DIGEST = hashlib.sha256().digest_size
_NAME = re.compile(r"step-(\d+)\.snapshot")


_writers: weakref.WeakValueDictionary[Path, object] = weakref.WeakValueDictionary()


def claim(folder: Path | None, owner: object) -> None:
    """From now on, the owner alone writes to a folder, until `release` or until it is gone.

    Raises:
        UsageError: another one of this process writes there.
    """
    if folder is None:
        return
    if folder in _writers:
        gc.collect()  # one that nobody can reach any more may wait for its turn
    if folder in _writers:
        raise UsageError(
            f"recover: another optimizer of this process writes its snapshots to {folder}: type "
            "attach(..., optimizer_index=1) for the second, or detach() the first where it is over"
        )
    _writers[folder] = owner


def release(folder: Path | None, owner: object) -> None:
    """The owner writes there no more."""
    if folder is not None and _writers.get(folder) is owner:
        del _writers[folder]


def write_snapshot(folder: Path, step: int, content: bytes, keep: int) -> Path:
    """Write one snapshot; earlier ones over `keep` go.

    A process killed in the middle leaves the earlier ones as they were. Those of later steps are of
    a run that was not gone on with: they are set aside, as ``*.unused``, once.

    Args:
        folder: made where it is missing.
        step: its number.
        content: what to write.
        keep: snapshots that stay.

    Returns:
        The file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob("*.partial"):
        leftover.unlink(missing_ok=True)
    path = folder / f"step-{step:09d}.snapshot"
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        file.write(MAGIC + hashlib.sha256(content).digest() + content)
        file.flush()
        os.fsync(file.fileno())
    _set_aside_after(folder, step)
    os.replace(partial, path)
    for old in _snapshots(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def read_newest(folder: Path, until: int | None = None) -> tuple[int, bytes] | None:
    """The newest snapshot that is whole; None where there is none.

    Args:
        folder: where `write_snapshot` wrote.
        until: no snapshot of a later step; None for any.

    Returns:
        Its step and content.
    """
    for path in reversed(_snapshots(folder)):
        content = None if until is not None and _step(path) > until else _checked(path)
        if content is not None:
            return _step(path), content
    return None


def drop_after(folder: Path, step: int) -> None:
    """Remove snapshots of later steps."""
    for path in _snapshots(folder):
        if _step(path) > step:
            path.unlink(missing_ok=True)


def _set_aside_after(folder: Path, step: int) -> None:
    later = [path for path in _snapshots(folder) if _step(path) > step]
    for old in folder.glob("*.unused") if later else ():
        old.unlink(missing_ok=True)
    for path in later:
        os.replace(path, path.with_suffix(".unused"))


def _snapshots(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.snapshot") if _NAME.fullmatch(path.name))


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def _checked(path: Path) -> bytes | None:
    try:
        data = (
            path.read_bytes() if path.is_file() else b""
        )  # to open a pipe waits for its other end
    except OSError:
        return None
    head = len(MAGIC) + _DIGEST
    if not data.startswith(MAGIC) or len(data) < head:
        return None
    content = data[head:]
    return content if hashlib.sha256(content).digest() == data[len(MAGIC) : head] else None
