"""A folder of run files, watched by one thread: read where one has changed, then judged.

Reading is quick and comes first, for all files; the rules follow one run at a time, those that
are running before the rest. Whatever a file holds, it costs its own row and no other.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from steadygrad.errors import RunFileError
from steadygrad.report.summary import joined, sketch, summarise
from steadygrad.rules import diagnose
from steadygrad.runlog import Run, open_run
from steadygrad.runlog.newest import is_run
from steadygrad.runlog.thinning import LONG, thinned
from steadygrad.serve.entries import MOST_TEXT, Entry, Stamp, judged, key_of, read, stamp_of, unread

LOOK_SECONDS = 0.5
REST = 4.0
"""Times as long as a run took to judge, until it is judged again: a fifth of a core."""
MOST_REPORTS = 8
MOST_ALERTS = 50
SKETCHED = 10
"""Stretches of a long run that are drawn before it is judged."""
JUDGEMENTS = ("verdict", "recommendation", "stability", "findings", "thresholds")
"""What of a report comes of the rules."""


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


@dataclass
class _Row:
    """A run file of the folder, and what was last done with it.

    Attributes:
        path: the file.
        entry: what the list shows of it.
        changed: the version at which that last changed.
        stamp: of the contents that were read; None before.
        next_read: not to be read again before then, in seconds of the monotonic clock.
        judged: of the contents that were judged; None before.
        next_judged: as `next_read`.
        drawn: what can be shown of a long run before it is judged, and of which contents.
    """

    path: Path
    entry: Entry
    changed: int
    stamp: Stamp | None = None
    next_read: float = 0.0
    judged: Stamp | None = None
    next_judged: float = 0.0
    drawn: tuple[Stamp, Run, dict[str, Any]] | None = None


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
        self._alerted: set[tuple[str, str]] = set()  # a file gone for a moment is not told of twice
        self._alerts: list[Alert] = []
        self._reports: OrderedDict[str, tuple[Stamp, Run, dict[str, object]]] = OrderedDict()
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

    def stamps(self, keys: tuple[str, ...]) -> tuple[Stamp, ...]:
        """What changes when one of these runs does, or has been judged."""
        with self._lock:
            rows = [self._rows[key] for key in keys if key in self._rows]
        ready = [self._reports.get(row.entry.key) for row in rows]
        return (*(stamp_of(row.path) for row in rows), *(() if r is None else r[0] for r in ready))

    def report(self, keys: tuple[str, ...]) -> dict[str, Any]:
        """A report of one run or several side by side.

        Args:
            keys: as the entries have them.

        Raises:
            RunFileError: no such run, or none that can be read.
        """
        runs, told = [], []
        for key in keys:
            row = self._rows.get(key)
            if row is None:
                raise RunFileError("there is no such run here: it may have been moved or removed")
            run, summary = self._sketch(row) if len(keys) == 1 else self._summary(row)
            runs.append(run)
            told.append(summary)
        notes = [
            f"{summary['name']} has {len(run):,} steps. Its findings and threshold are of "
            "some of them, its curves and figures of all; its tensors are shown by: "
            "steadygrad report"
            for run, summary in zip(runs, told, strict=True)
            if len(run) > LONG and summary["stability"] is not None
        ]
        notes += [
            f"{summary['name']} has {len(run):,} steps. Curves and figures are of some of them, "
            "until the rules have been applied."
            for run, summary in zip(runs, told, strict=True)
            if summary["stability"] is None
        ]
        return joined(runs, told, notes=notes)

    def _sketch(self, row: _Row) -> tuple[Run, dict[str, Any]]:
        """`_summary`; of a long run that is not judged yet, what can be drawn at once."""
        stamp, ready = stamp_of(row.path), self._reports.get(row.entry.key)
        if ready is not None and ready[0] == stamp:
            return ready[1:]
        if row.entry.steps <= LONG:
            return self._summary(row)
        drawn = row.drawn
        if drawn is None or drawn[0] != stamp:
            drawn = row.drawn = self._draw(row, stamp)
        if ready is None:
            return drawn[1:]
        judged = {key: ready[2][key] for key in JUDGEMENTS}  # of the steps so far, a moment ago
        return drawn[1], {**drawn[2], **judged}

    @staticmethod
    def _draw(row: _Row, stamp: Stamp) -> tuple[Stamp, Run, dict[str, Any]]:
        run = open_run(row.path)
        return stamp, run, sketch(thinned(run, SKETCHED), Path(row.entry.name).stem)

    def _summary(self, row: _Row) -> tuple[Run, dict[str, Any]]:
        path, key = row.path, row.entry.key
        with self._reading:  # what the watching thread makes is not made twice
            stamp = stamp_of(path)
            ready = self._reports.get(key)
            if ready is not None and ready[0] == stamp:
                self._reports.move_to_end(key)
                return ready[1:]
            entry, run = read(path)
            if run is None:
                raise RunFileError(entry.sentence)
            summary = summarise(run, Path(entry.name).stem, quick=True)
            self._reports[key] = stamp, run, summary
            while len(self._reports) > MOST_REPORTS:
                self._reports.popitem(last=False)
        return run, summary

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
        if stamp == row.stamp and before.state != "running":
            return
        entry, _ = read(row.path)
        now = time.monotonic()
        row.next_read = now + max(LOOK_SECONDS, REST * (now - began))
        if entry.state != "unreadable":
            entry = replace(entry, level=before.level, word=before.word, sentence=before.sentence)
        row.stamp = stamp
        if entry.steps > LONG and row.drawn is None:
            with contextlib.suppress(Exception):  # a made file: told to whoever opens it
                row.drawn = self._draw(row, stamp)
        self._show(row, entry)

    def _show(self, row: _Row, entry: Entry) -> None:
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
                told = f"its rules could not be applied: {type(error).__name__}"
                entry = replace(entry, level="empty", word="Unknown", sentence=told)
        self._show(row, entry)
        now = time.monotonic()
        row.judged, row.next_judged = stamp, now + max(1.0, REST * (now - began))

    def _with_verdict(self, row: _Row, entry: Entry, run: Run) -> Entry:
        if len(run) > LONG:  # its report is slow to make: ready when somebody asks for it
            _, summary = self._summary(row)
            self._note(entry, summary["findings"])
            return replace(entry, **summary["verdict"])
        findings = diagnose(run)
        self._note(entry, [finding.to_dict() for finding in findings])
        return judged(entry, run, findings)

    def _note(self, entry: Entry, findings: list[dict[str, Any]]) -> None:
        """Tell of what is new in a run that goes on."""
        grave = [f for f in findings if f["severity"] in ("error", "warning")]
        fresh = [f for f in grave if (entry.key, f["id"]) not in self._alerted]
        self._alerted |= {(entry.key, f["id"]) for f in grave}
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
