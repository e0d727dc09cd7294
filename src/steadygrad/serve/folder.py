"""A folder of run files, watched by one thread: read where one has changed, then judged.

Reading is quick and comes first, for all files; the rules follow one run at a time, those that
are running before the rest. Whatever a file holds, it costs its own row and no other.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from steadygrad.errors import RunFileError
from steadygrad.report.model import ReportData, RunData
from steadygrad.report.summary import joined, sketch, summarise, with_judgement
from steadygrad.rules import diagnose
from steadygrad.runlog import Run, open_run
from steadygrad.runlog.newest import is_run
from steadygrad.runlog.thinning import LONG, thinned
from steadygrad.serve.entries import (
    MOST_TEXT,
    RunEntry,
    Stamp,
    judged,
    key_of,
    read,
    stamp_of,
    unread,
)

LOOK_SECONDS = 0.5
AGAIN_SECONDS = 10.0
"""Until a file that could not be read is tried again: its permissions, say, leave no mark on it."""
REST = 4.0
"""Times as long as a run took to judge, until it is judged again: a fifth of a core."""
MOST_REPORTS = 8
MOST_ALERTS = 50
SKETCHED = 10
"""Stretches of a long run that are drawn before it is judged."""


@dataclass(frozen=True)
class Alert:
    """A finding that appeared while the page was open, or that the training told.

    Attributes:
        key: of the run.
        name: of the run.
        id: of the rule.
        severity: ``error`` or ``warning``.
        title: what was found.
        step: where; None where it has none.
    """

    key: str
    name: str
    id: str
    severity: str
    title: str
    step: int | None


class Drawing(NamedTuple):
    """A run as a report draws it.

    Attributes:
        stamp: of the contents that were read.
        run: the run.
        summary: of it, as `report.summary` makes it.
        judged: of the contents that the rules were applied to; empty before.
    """

    stamp: Stamp
    run: Run
    summary: RunData
    judged: Stamp = ()


@dataclass
class _Row:
    """A run file of the folder, and what was last done with it.

    Attributes:
        path: the file.
        entry: what the list shows of it.
        changed: the version at which that last changed.
        stamp: of the contents that were read; None before.
        last_read: when that was, in seconds of the monotonic clock.
        next_read: not to be read again before then.
        judged: of the contents that were judged; None before.
        next_judged: as `next_read`.
        drawn: what can be shown of a long run before it is judged.
    """

    path: Path
    entry: RunEntry
    changed: int
    stamp: Stamp | None = None
    last_read: float = 0.0
    next_read: float = 0.0
    judged: Stamp | None = None
    next_judged: float = 0.0
    drawn: Drawing | None = None


class Folder:
    """The run files of a folder, and what is known of each.

    Args:
        path: the folder; folders inside it are left alone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.version = 0
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._stop = threading.Event()
        self._rows: dict[str, _Row] = {}
        self._alerted: set[tuple[object, ...]] = set()  # a file gone for a moment stays in it
        self._alerts: list[Alert] = []
        self._reports: OrderedDict[str, Drawing] = OrderedDict()
        self._thread = threading.Thread(target=self._watch, name="steadygrad-serve", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End, after the file that is being read."""
        self._stop.set()
        self._thread.join(10.0)

    def changes(self, since: int) -> dict[str, Any]:
        """What the list needs to know.

        Args:
            since: the version that the caller has; -1 for none.

        Returns:
            ``version``, ``runs`` (entries that changed), ``keys`` (all there are), ``alerts``.
        """
        with self._lock:
            runs = [asdict(row.entry) for row in self._rows.values() if row.changed > since]
            alerts = [asdict(alert) for alert in self._alerts]
            keys = list(self._rows)
            return {"version": self.version, "runs": runs, "keys": keys, "alerts": alerts}

    def mark(self, keys: tuple[str, ...]) -> str:
        """What changes when one of these runs does, or has been judged; as `report` gives it."""
        with self._lock:
            rows = [self._rows[key] for key in keys if key in self._rows]
        judged = [self._judged_of(row) for row in rows]
        return _mark([(stamp_of(row.path), stamp) for row, stamp in zip(rows, judged, strict=True)])

    def _judged_of(self, row: _Row) -> Stamp:
        """Of a short run the rules are a part of drawing it."""
        ready = self._reports.get(row.entry.key) if row.entry.steps > LONG else None
        return () if ready is None else ready.judged

    def report(self, keys: tuple[str, ...]) -> tuple[ReportData, str]:
        """A report of one run or several side by side.

        Args:
            keys: as the entries have them.

        Returns:
            The report, and the `mark` of the contents that it shows.

        Raises:
            RunFileError: no such run, or none that can be read.
        """
        drawings = []
        for key in keys:
            row = self._rows.get(key)
            if row is None:
                raise RunFileError("there is no such run here: it may have been moved or removed")
            drawings.append(self._sketch(row) if len(keys) == 1 else self._summary(row))
        runs, summaries = [d.run for d in drawings], [d.summary for d in drawings]
        notes = [
            f"{summary['name']} has {len(run):,} steps. Its findings and threshold are of "
            "some of them, its curves and figures of all; its tensors are shown by: "
            "steadygrad report"
            for run, summary in zip(runs, summaries, strict=True)
            if len(run) > LONG and summary["stability"] is not None
        ]
        notes += [
            f"{summary['name']} has {len(run):,} steps. Curves and figures are of some of them, "
            "until the rules have been applied."
            for run, summary in zip(runs, summaries, strict=True)
            if summary["stability"] is None
        ]
        shown = [(d.stamp, d.judged if len(d.run) > LONG else ()) for d in drawings]
        return joined(runs, summaries, notes=notes), _mark(shown)

    def _sketch(self, row: _Row) -> Drawing:
        """`_summary`; of a long run that is not judged yet, what can be drawn at once."""
        stamp, ready = stamp_of(row.path), self._reports.get(row.entry.key)
        if ready is not None and ready.stamp == stamp:
            return ready
        if row.entry.steps <= LONG:
            return self._summary(row)
        drawn = row.drawn
        if drawn is None or drawn.stamp != stamp:
            drawn = row.drawn = self._draw(row, stamp)
        if ready is None:
            return drawn
        summary = with_judgement(drawn.summary, ready.summary)  # of a moment ago
        return Drawing(stamp, drawn.run, summary, ready.judged)

    @staticmethod
    def _draw(row: _Row, stamp: Stamp) -> Drawing:
        run = open_run(row.path)
        return Drawing(stamp, run, sketch(thinned(run, SKETCHED), Path(row.entry.name).stem))

    def _summary(self, row: _Row) -> Drawing:
        path, key = row.path, row.entry.key
        with self._reading:  # what the watching thread makes is not made twice
            stamp = stamp_of(path)
            ready = self._reports.get(key)
            if ready is not None and ready.stamp == stamp:
                self._reports.move_to_end(key)
                return ready
            entry, run = read(path)
            if run is None:
                raise RunFileError(entry.sentence)
            summary = summarise(run, Path(entry.name).stem, quick=True)
            ready = self._reports[key] = Drawing(stamp, run, summary, stamp)
            while len(self._reports) > MOST_REPORTS:
                self._reports.popitem(last=False)
        return ready

    def _watch(self) -> None:
        while not self._stop.is_set():
            self._list()
            for row in list(self._rows.values()):
                self._read(row)
                if self._stop.is_set():
                    return
            due = self._due()
            if due:
                self._judge(due[0])
            self._stop.wait(0.01 if len(due) > 1 else LOOK_SECONDS)

    def _list(self) -> None:
        try:
            present = {key_of(path): path for path in self.path.glob("*.db") if is_run(path)}
        except OSError:  # the folder is gone for a moment, or for good
            present = {}
        with self._lock:
            for key in set(self._rows) - set(present):
                self.version += 1
                del self._rows[key]
            for key in set(present) - set(self._rows):
                self.version += 1  # a row at once: a long run takes a second to read
                self._rows[key] = _Row(present[key], unread(present[key]), self.version)

    # a long run that is being written is read as seldom as it is slow to read
    def _read(self, row: _Row) -> None:
        began = time.monotonic()
        if began < row.next_read:
            return
        stamp = stamp_of(row.path)
        before = row.entry
        again = before.state == "running" or (
            before.state == "unreadable" and began > row.last_read + AGAIN_SECONDS
        )
        if stamp == row.stamp and not again:
            return
        entry, _ = read(row.path)
        now = row.last_read = time.monotonic()
        row.next_read = now + max(LOOK_SECONDS, REST * (now - began))
        if entry.started != before.started and before.started is not None:
            self._reports.pop(before.key, None)  # another run, under the name of an earlier one
            row.drawn = None
        elif before.state == "unreadable":
            row.judged = None
        elif entry.state != "unreadable":
            entry = replace(entry, level=before.level, word=before.word, sentence=before.sentence)
        row.stamp = stamp
        if entry.steps > LONG and row.drawn is None:
            with contextlib.suppress(Exception):  # a made file: told to whoever opens it
                row.drawn = self._draw(row, stamp)
        self._show(row, entry)

    def _show(self, row: _Row, entry: RunEntry) -> None:
        with self._lock:
            if row.entry != entry:
                self.version += 1
                row.entry, row.changed = entry, self.version

    def _due(self) -> list[_Row]:
        """Runs to judge, the most pressing first."""
        now = time.monotonic()
        waiting = [
            row
            for row in self._rows.values()
            if row.entry.state not in ("reading", "unreadable")
            and row.judged != row.stamp
            and now >= row.next_judged
        ]
        return sorted(waiting, key=_urgency)

    def _judge(self, row: _Row) -> None:
        began, stamp = time.monotonic(), row.stamp
        entry, run = read(row.path)
        if run is not None:
            try:
                entry = self._with_verdict(row, entry, run)
            except Exception as error:  # a rule that a made file breaks costs its row alone
                reason = f"its rules could not be applied: {type(error).__name__}"
                entry = replace(entry, level="empty", word="Unknown", sentence=reason)
        self._show(row, entry)
        now = time.monotonic()
        row.judged, row.next_judged = stamp, now + max(1.0, REST * (now - began))

    def _with_verdict(self, row: _Row, entry: RunEntry, run: Run) -> RunEntry:
        if len(run) > LONG:  # its report is slow to make: ready when somebody asks for it
            summary = self._summary(row).summary
            self._note(entry, summary["findings"])
            return replace(entry, **summary["verdict"])
        findings = diagnose(run)
        self._note(entry, [finding.to_dict() for finding in findings])
        return judged(entry, run, findings)

    def _note(self, entry: RunEntry, findings: Sequence[Mapping[str, Any]]) -> None:
        """Tell of what is new in a run that goes on."""
        run = entry.key, entry.started  # a later run may bear the name of an earlier one
        grave = {
            (*run, f["optimizer"], f["id"], f["severity"]): f
            for f in findings
            if f["severity"] in ("error", "warning")
        }
        fresh = [f for key, f in grave.items() if key not in self._alerted]
        self._alerted |= set(grave)
        if entry.state != "running" or not fresh:
            return
        with self._lock:
            self.version += 1
            for f in fresh:
                step = int(f["steps"][0]) if f["steps"] else None
                title = str(f["title"])[:MOST_TEXT]
                alert = Alert(entry.key, entry.name, f["id"], f["severity"], title, step)
                self._alerts = [*self._alerts, alert][-MOST_ALERTS:]


def _urgency(row: _Row) -> tuple[bool, bool, float]:
    return row.entry.state != "running", row.judged is not None, -(row.entry.started or 0.0)


def _mark(shown: list[tuple[Stamp, Stamp]]) -> str:
    return hashlib.sha256(repr(shown).encode()).hexdigest()[:16]
