"""One run file as the list shows it."""

from __future__ import annotations

import hashlib
import math
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from steadygrad.errors import RunFileError
from steadygrad.report import verdict
from steadygrad.report.numbers import short
from steadygrad.rules import Finding
from steadygrad.runlog import Run, open_run
from steadygrad.runlog.state import SILENT_SECONDS
from steadygrad.text import printable

SPARK_POINTS = 60
MOST_TEXT = 300
MOST_SECONDS = 1e11
"""Since 1970; NaN and what is beyond is no moment."""

Stamp = tuple[int, ...]
"""Sizes and times of a file and its journal: another one means other contents."""


@dataclass(frozen=True)
class RunEntry:
    """What the list shows of a run file.

    Attributes:
        key: names the file in addresses; says nothing of its path.
        name: the file's name.
        state: ``reading``, ``running``, ``silent``, ``ended``, ``stopped``, ``failed`` or
            ``unreadable``.
        policy: the clipping policy, as recorded.
        steps: steps recorded.
        started: seconds since the Unix epoch; None where unknown.
        spark: the largest norm of each stretch of steps; None where not finite or 0.
        level: the verdict's level; empty before the rules have run.
        word: the verdict in a word or two.
        sentence: the verdict in a sentence, or why the file cannot be read.
    """

    key: str
    name: str
    state: str
    policy: str = ""
    steps: int = 0
    started: float | None = None
    spark: tuple[float | None, ...] = ()
    level: str = ""
    word: str = ""
    sentence: str = ""


def key_of(path: Path) -> str:
    """A name for a file that can stand in an address, whatever its own name holds."""
    return hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]


def stamp_of(path: Path) -> Stamp:
    """What changes when a run file or its journal is written to; empty where there is none."""
    numbers: list[int] = []
    for part in (path, path.with_name(f"{path.name}-wal")):
        try:
            status = part.stat()
        except OSError:  # no journal, or gone since the folder was listed
            continue
        numbers += [status.st_mtime_ns, status.st_size]
    return tuple(numbers)


def unread(path: Path) -> RunEntry:
    """The entry of a file that was found and not yet read."""
    return RunEntry(key_of(path), _shown(path.name), "reading")


def read(path: Path) -> tuple[RunEntry, Run | None]:
    """Read what needs no rules.

    Args:
        path: the run file, sound or not.

    Returns:
        Its entry, and the run; None where it cannot be read.
    """
    blank = replace(unread(path), state="unreadable")
    try:
        run = open_run(path)
        return _described(blank, run), run
    except RunFileError as error:
        reason = str(error).replace(str(path), path.name)
    except Exception as error:  # a made file may hold what no check foresaw: it costs its row
        reason = f"it cannot be read ({type(error).__name__})"
    return replace(blank, word="Unreadable", sentence=_shown(reason)), None


def _described(blank: RunEntry, run: Run) -> RunEntry:
    started = run.info.get("started")
    return replace(
        blank,
        state=_state(run),
        policy=_shown(run.info.get("policy") or "none"),
        steps=len(run),
        started=float(started) if _is_moment(started) else None,
        spark=_spark(np.asarray(run.steps["norm"])),
    )


def _is_moment(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and abs(value) < MOST_SECONDS


def judged(entry: RunEntry, run: Run, findings: list[Finding]) -> RunEntry:
    """The entry with its verdict."""
    judgement = verdict(run, findings)
    return replace(
        entry, level=judgement.level, word=judgement.word, sentence=_shown(judgement.sentence)
    )


def _shown(text: object) -> str:
    return str(printable(str(text)))[:MOST_TEXT]


def _state(run: Run) -> str:
    ending = run.info.get("exit", "ok" if "ended" in run.info else None)
    if ending is not None and "ended" in run.info:
        if ending == "stopped":  # by an alert
            return "stopped"
        return "ended" if ending in ("ok", 0, "0") else "failed"
    last = float(run.steps["time"][-1]) if len(run) else run.info.get("started")
    silent = time.time() - last if _is_moment(last) else math.inf
    return "running" if silent < SILENT_SECONDS else "silent"


def _spark(norms: NDArray[np.float64]) -> tuple[float | None, ...]:
    if not len(norms):
        return ()
    usable = np.where(np.isfinite(norms) & (norms > 0), norms, np.nan)
    starts = np.linspace(0, len(norms), min(SPARK_POINTS, len(norms)) + 1).astype(int)[:-1]
    return tuple(short(np.fmax.reduceat(usable, starts)))
