"""The run file of a job that its launcher has started again: the next start goes on in it."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from steadygrad.elastic import job
from steadygrad.runlog.schema import SCHEMA_VERSION
from steadygrad.runlog.store import is_being_written

JOB, PROCESS = "job", "process_id"
"""Facts of a run file: what all starts of its job have in common, and which process wrote it."""


def facts_of_start() -> dict[str, object]:
    """What the next start of the job tells the file of this one by; empty without a launcher."""
    own = job()
    return {JOB: own, PROCESS: os.getpid()} if own else {}


def file_of_job(paths: Iterable[str | os.PathLike[str]]) -> str:
    """The file that an earlier start of this job has left.

    Args:
        paths: where it may be; the first that is one is taken.

    Returns:
        Its path; empty for none, and where somebody has it open.
    """
    own = job()
    for path in [os.fspath(each) for each in paths] if own else ():
        facts = _facts(path)
        earlier = facts.get(JOB) == own and facts.get(PROCESS) != os.getpid()
        if earlier and not is_being_written(Path(path)):
            return path
    return ""


def _facts(path: str) -> dict[str, object]:
    if not os.path.isfile(path):
        return {}
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=1.0)) as connection:
            if connection.execute("PRAGMA user_version").fetchone()[0] != SCHEMA_VERSION:
                return {}
            rows = connection.execute("SELECT key, value FROM info").fetchall()
        return {key: json.loads(value) for key, value in rows}
    except (sqlite3.Error, ValueError):
        return {}
