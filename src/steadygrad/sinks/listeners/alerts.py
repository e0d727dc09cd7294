"""Alerts: the rules applied to a run while it goes on; what they find is told once.

The rules read the run file, as `steadygrad diagnose` does, so that an alert says what the
report will say. They run in this sink's thread, soon after a step with a non-finite gradient
and otherwise on a schedule that keeps them to a few per cent of one core, however long the
run gets.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from steadygrad.errors import UsageError
from steadygrad.rules import SEVERITIES, Finding, diagnose
from steadygrad.runlog.items import Head
from steadygrad.runlog.notice import warn
from steadygrad.runlog.stopping import interrupt
from steadygrad.sinks.addresses import CHOICES, check_address
from steadygrad.sinks.base import Batch, Sink
from steadygrad.sinks.delivery import Address, Post
from steadygrad.text import printable
from steadygrad.vocabulary import ALERT

EVERY_SECONDS = 5.0
BROKEN_SECONDS = 0.5
REST = 20.0
"""Times as long as a diagnosis took until the next: 5 % of a core at most."""


STOP = "stop"
"""What a function returns that wants the training to end."""
GRACE_SECONDS = 5.0
"""How long a training may go on that was asked to end, until it is interrupted."""


class Alerts(Sink):
    """Tells of findings as they appear, in the terminal and the record; may end the training.

    Args:
        target: an ``http(s)`` address that each finding is posted to as JSON, or an address of
            Apprise's such as ``slack://...`` (`steadygrad[alerts]`), or several; may be empty.
        tensors: has no effect here; every sink takes it.
        call: called with each `Finding`, in a thread of its own; where it returns ``"stop"``, the
            training ends after the step under way.
        every: seconds between two looks at the run.
        quiet: say nothing on standard error.
        on: the least severity that is told: ``error`` or ``warning``.
        stop_on: end the training at a finding at least as grave; None never does.

    Raises:
        UsageError: an address or a severity that cannot be.
        MissingExtraError: an address of Apprise's, which is not installed.

    Example:
        >>> seen = []
        >>> sink = Alerts(call=seen.append)
        >>> sink.kind
        'alerts'
    """

    kind = "alerts"
    speaks = True

    def __init__(
        self,
        target: str | Sequence[str] = "",
        *,
        tensors: int | None = None,
        call: Callable[[Finding], object] | None = None,
        every: float = EVERY_SECONDS,
        quiet: bool = False,
        on: str = "error",
        stop_on: str | None = None,
    ) -> None:
        super().__init__(tensors=tensors)
        addresses = [target] if isinstance(target, str) else target
        for address in filter(None, addresses):
            check_address(address)
        self._posts = [Post(Address(address)) for address in addresses if address]
        self._call, self._every, self._quiet = call, every, quiet
        self._severities = _at_least(on)
        self._stops = () if stop_on is None else _at_least(stop_on)
        self._stopping: tuple[str, float] | None = None
        self._reported: set[tuple[str, int, str]] = set()
        self._broken = False
        self._next_look = 0.0
        self._steps_since = 0
        self._newest = -math.inf

    def open(self, head: Head) -> None:
        """Learn where the run file is."""
        self._head = head
        self._next_look = time.monotonic() + self._every

    def write(self, batch: Batch) -> None:
        """Note that there are new steps, and look soon if one of them is broken."""
        self._steps_since += len(batch.steps)
        self._newest = float(batch.steps["time"][-1])
        broken = (batch.steps["nonfinite"] > 0) | ~np.isfinite(batch.steps["norm"])
        if broken.any() and not self._broken:
            self._broken = True
            self._next_look = min(self._next_look, time.monotonic() + BROKEN_SECONDS)

    def take(self, items: Sequence[object]) -> None:
        """Handle a batch, which may be empty, then look at the run where it is time."""
        super().take(items)
        if self._stopping is not None:
            self._insist(*self._stopping)
        elif self._steps_since and time.monotonic() >= self._next_look:
            self._look()

    def _insist(self, reason: str, since: float) -> None:
        """Interrupt a training that takes steps yet, and not one that is saving its model."""
        if self._newest > since + GRACE_SECONDS:
            self._stopping = reason, math.inf
            interrupt(reason)

    def close(self) -> None:
        """Look a last time."""
        if self._steps_since:
            self._look()

    def _look(self) -> None:
        began = time.monotonic()
        self._steps_since = 0
        if self._head.path is not None:
            for finding in diagnose(self._head.path):
                key = finding.id, finding.optimizer, finding.severity  # a warning may grow graver
                grave = finding.severity in (*self._severities, *self._stops)
                if grave and key not in self._reported:
                    self._reported.add(key)
                    self._tell(finding)
        spent = time.monotonic() - began
        self._next_look = time.monotonic() + max(self._every, REST * spent)

    def _tell(self, finding: Finding) -> None:
        step = finding.steps[0] if finding.steps else None
        self._head.write_event(ALERT, finding.to_dict(), step)
        if not self._quiet:
            print(in_words(finding), file=sys.stderr, flush=True)
        answer = None if self._call is None else _deliver(self._call, finding)
        for post in self._posts:
            post.send(finding)
        if finding.severity in self._stops or answer == STOP:
            self._ask_to_stop(finding)

    def _ask_to_stop(self, finding: Finding) -> None:
        where = f" at step {finding.steps[0]}" if finding.steps else ""
        reason = f"{finding.id}{where}: {finding.title}"
        if self._head.stop is not None and self._stopping is None:
            self._stopping = reason, time.time()
            self._head.stop(reason, finding.steps[0] if finding.steps else None)

    def __str__(self) -> str:
        return self.kind  # the address is a secret


def _at_least(severity: str) -> tuple[str, ...]:
    if severity not in CHOICES:
        raise UsageError(f"a severity is one of {', '.join(CHOICES)}; got {severity!r}")
    return SEVERITIES[: SEVERITIES.index(severity) + 1]


def _deliver(way: Callable[[Finding], object], finding: Finding) -> object:
    try:
        return way(finding)
    except Exception as error:  # a user's function, whose message may hold an address of theirs
        warn(f"an alert ({finding.id}) did not arrive: your function raised {type(error).__name__}")
        return None


def in_words(finding: Finding) -> str:
    """A finding for a terminal: what happened, what was measured, what to change.

    Example:
        >>> lower = "for g in optimizer.param_groups:\\n    g['lr'] = 1e-4"
        >>> found = Finding("SG101", "NaN in fc.", "error", 1.0, steps=(7,), fixes=(lower,))
        >>> print(in_words(found))
        steadygrad alert: SG101 at step 7: NaN in fc.
          fix:
            for g in optimizer.param_groups:
                g['lr'] = 1e-4
          more: steadygrad explain SG101
    """
    where = f" at step {finding.steps[0]}" if finding.steps else ""
    lines = [f"steadygrad alert: {finding.id}{where}: {finding.title}"]
    lines += [f"  {sentence}" for sentence in finding.evidence[:1]]
    if finding.fixes:
        code = finding.fixes[0].strip().splitlines()
        lines += ["  fix:", *(f"    {line}" for line in code)]
    return str(printable("\n".join([*lines, f"  more: {finding.explain}"])))


SINK = Alerts
