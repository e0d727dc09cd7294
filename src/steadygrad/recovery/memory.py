"""How much memory this process may use: the machine's, or less where a container is given less."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

ROOT = Path("/")
UNKNOWN = 8 * 2**30
"""Bytes that a machine is taken to have that does not say."""


def half_of_memory(root: Path = ROOT) -> int:
    """Half of the memory that this process may use, in bytes.

    Args:
        root: where ``proc`` and ``sys`` are.

    Example:
        >>> half_of_memory() > 0
        True
    """
    return min([_of_the_machine(), *_of_control_groups(root)]) // 2


def _of_the_machine() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return UNKNOWN


def _of_control_groups(root: Path) -> list[int]:
    """Limits of the control groups that this process is in, and of those around them."""
    limits = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, named = line.partition(":")
        controllers, _, group = named.partition(":")
        if not controllers:
            limits += _limits(root / "sys/fs/cgroup", group, "memory.max")
        elif "memory" in controllers.split(","):
            limits += _limits(root / "sys/fs/cgroup/memory", group, "memory.limit_in_bytes")
    return limits


def _limits(mount: Path, group: str, file: str) -> list[int]:
    # a container sees its own group as the root, under a path that is the host's
    path = PurePosixPath(group.lstrip("/"))
    texts = [_text(mount / each / file).strip() for each in (path, *path.parents)]
    return [int(text) for text in texts if text.isdecimal() and int(text) > 0]


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
