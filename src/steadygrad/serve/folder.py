"""A folder of run files, watched by one thread: read where one has changed, then judged.

Reading is quick and comes first, for all files; the rules follow one run at a time, those that
are running before the rest. Whatever a file holds, it costs its own row and no other.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from steadygrad.errors import RunFileError
from steadygrad.report.summary import joined, summarise
from steadygrad.rules import diagnose
from steadygrad.runlog import Run
from steadygrad.runlog.newest import is_run
from steadygrad.runlog.thinning import LONG
from steadygrad.serve.entries import MOST_TEXT, Entry, Stamp, judged, key_of, read, stamp_of, unread

LOOK_SECONDS = 0.5
REST = 4.0
"""Times as long as a run took to judge, until it is judged again: a fifth of a core."""
MOST_REPORTS = 8
MOST_ALERTS = 50


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
        self._paths: dict[str, Path] = {}
        self._entries: dict[str, Entry] = {}
        self._stamps: dict[str, Stamp] = {}
        self._changed: dict[str, int] = {}
        self._next_read: dict[str, float] = {}
        self._judged: dict[str, tuple[Stamp, float]] = {}
        self._alerted: dict[str, set[str]] = {}
        self._alerts: list[Alert] = []
        self._reports: OrderedDict[str, tuple[Stamp, Run, dict[str, Any]]] = OrderedDict()
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
            runs = [asdict(e) for key, e in self._entries.items() if self._changed[key] > since]
            alerts = [asdict(alert) for alert in self._alerts]
            keys = list(self._entries)
            return {"version": self.version, "runs": runs, "keys": keys, "alerts": alerts}

    def stamps(self, keys: tuple[str, ...]) -> tuple[Stamp, ...]:
        """What changes when one of these runs does."""
        return tuple(stamp_of(self._paths[key]) for key in keys if key in self._paths)

    def report(self, keys: tuple[str, ...]) -> dict[str, Any]:
        """A report of one run or several side by side.

        Args:
            keys: as the entries have them.

        Raises:
            RunFileError: no such run, or none that can be read.
        """
        runs, told = [], []
        for key in keys:
            if key not in self._paths:
                raise RunFileError("there is no such run here: it may have been moved or removed")
            run, summary = self._summary(key)
            runs.append(run)
            told.append(summary)
        notes = [
            f"{summary['name']} has {len(run):,} steps. Its findings and threshold are of "
            "some of them, its curves and figures of all; its tensors are shown by: "
            "steadygrad report"
            for run, summary in zip(runs, told, strict=True)
            if len(run) > LONG
        ]
        return joined(runs, told, notes=notes)

    def _summary(self, key: str) -> tuple[Run, dict[str, Any]]:
        path = self._paths[key]
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
            for key in list(self._paths):
                self._read(key)
                if self._stop.is_set():
                    return
            self._judge_one()
            self._stop.wait(0.01 if self._due() else LOOK_SECONDS)

    def _list(self) -> None:
        try:
            present = {key_of(path): path for path in self.path.glob("*.db") if is_run(path)}
        except OSError:  # the folder is gone for a moment, or for good
            present = {}
        for key in set(self._paths) - set(present):
            with self._lock:
                self.version += 1
                for table in (self._entries, self._stamps, self._judged, self._changed):
                    table.pop(key, None)
        self._paths = present
        for key in set(present) - set(self._entries):
            self._put(unread(present[key]))  # a row at once: a long run takes a second to read

    # a long run that is being written is read as seldom as it is slow to read
    def _read(self, key: str) -> None:
        began = time.monotonic()
        if began < self._next_read.get(key, 0.0):
            return
        stamp = stamp_of(self._paths[key])
        before = self._entries.get(key)
        if stamp == self._stamps.get(key) and (before is None or before.state != "running"):
            return
        entry, _ = read(self._paths[key])
        now = time.monotonic()
        self._next_read[key] = now + max(LOOK_SECONDS, REST * (now - began))
        if before is not None and entry.state != "unreadable":
            entry = replace(entry, level=before.level, word=before.word, sentence=before.sentence)
        self._stamps[key] = stamp
        self._put(entry)

    def _put(self, entry: Entry) -> None:
        with self._lock:
            if self._entries.get(entry.key) != entry:
                self.version += 1
                self._changed[entry.key] = self.version
                self._entries[entry.key] = entry

    def _due(self) -> list[str]:
        """Runs to judge, the most pressing first."""
        now = time.monotonic()
        waiting = [
            key
            for key, entry in self._entries.items()
            if entry.state not in ("reading", "unreadable")
            and (key not in self._judged or self._judged[key][0] != self._stamps[key])
            and (key not in self._judged or now >= self._judged[key][1])
        ]
        return sorted(waiting, key=self._urgency)

    def _urgency(self, key: str) -> tuple[bool, bool, float]:
        entry = self._entries[key]
        return entry.state != "running", key in self._judged, -(entry.started or 0.0)

    def _judge_one(self) -> None:
        due = self._due()
        if not due:
            return
        key, began = due[0], time.monotonic()
        stamp = self._stamps[key]
        entry, run = read(self._paths[key])
        if run is not None:
            try:
                entry = self._with_verdict(entry, run)
            except Exception as error:  # a rule that a made file breaks costs its row alone
                told = f"its rules could not be applied: {type(error).__name__}"
                entry = replace(entry, level="empty", word="Unknown", sentence=told)
        self._put(entry)
        now = time.monotonic()
        self._judged[key] = stamp, now + max(1.0, REST * (now - began))

    def _with_verdict(self, entry: Entry, run: Run) -> Entry:
        if len(run) > LONG:  # its report is slow to make: ready when somebody asks for it
            _, summary = self._summary(entry.key)
            self._note(entry, summary["findings"])
            return replace(entry, **summary["verdict"])
        findings = diagnose(run)
        self._note(entry, [finding.to_dict() for finding in findings])
        return judged(entry, run, findings)

    def _note(self, entry: Entry, findings: list[dict[str, Any]]) -> None:
        """Tell of what is new in a run that goes on."""
        grave = [f for f in findings if f["severity"] in ("error", "warning")]
        known = self._alerted.setdefault(entry.key, set())
        fresh = [f for f in grave if f["id"] not in known]
        known |= {f["id"] for f in grave}
        if entry.state != "running" or not fresh:
            return
        with self._lock:
            self.version += 1
            for f in fresh:
                step = int(f["steps"][0]) if f["steps"] else None
                title = str(f["title"])[:MOST_TEXT]
                alert = Alert(entry.key, entry.name, f["id"], f["severity"], title, step)
                self._alerts = [*self._alerts, alert][-MOST_ALERTS:]
