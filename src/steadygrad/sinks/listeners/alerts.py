"""Alerts: the rules applied to a run while it goes on; a finding of severity error is told once.

The rules read the run file, as `steadygrad diagnose` does, so that an alert says what the
report will say. They run in this sink's thread, soon after a step with a non-finite gradient
and otherwise on a schedule that keeps them to a few per cent of one core, however long the
run gets.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np

from steadygrad.rules import Finding, diagnose
from steadygrad.runlog.hidden import HiddenThread
from steadygrad.runlog.items import Head
from steadygrad.runlog.notice import warn
from steadygrad.sinks.addresses import check_address
from steadygrad.sinks.base import Batch, Sink
from steadygrad.text import printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from http.client import HTTPMessage
    from typing import IO

EVERY_SECONDS = 5.0
BROKEN_SECONDS = 0.5
REST = 20.0
"""Times as long as a diagnosis took until the next: 5 % of a core at most."""
WEBHOOK_SECONDS = 5.0
DELIVERY_SECONDS = 10.0
"""How long one alert may take, whatever its server does: each byte has `WEBHOOK_SECONDS` alone."""


class Alerts(Sink):
    """Tells of findings of severity error as they appear, in the terminal and the record.

    Args:
        target: an ``http(s)`` address that each finding is posted to as JSON; may be empty.
        tensors: has no effect here; every sink takes it.
        call: called with each `Finding`, in a thread of its own.
        every: seconds between two looks at the run.
        quiet: say nothing on standard error.

    Example:
        >>> seen = []
        >>> sink = Alerts(call=seen.append)
        >>> sink.kind
        'alerts'
    """

    kind = "alerts"

    def __init__(
        self,
        target: str = "",
        *,
        tensors: int | None = None,
        call: Callable[[Finding], object] | None = None,
        every: float = EVERY_SECONDS,
        quiet: bool = False,
    ) -> None:
        super().__init__(target, tensors=tensors)
        if target:
            check_address(target)
        self._call, self._every, self._quiet = call, every, quiet
        self._posting: HiddenThread | None = None
        self._told: set[tuple[str, int]] = set()
        self._broken = False
        self._next_look = 0.0
        self._steps_since = 0

    def open(self, head: Head) -> None:
        """Learn where the run file is."""
        self._head = head
        self._next_look = time.monotonic() + self._every

    def write(self, batch: Batch) -> None:
        """Note that there are new steps, and look soon if one of them is broken."""
        self._steps_since += len(batch.steps)
        broken = (batch.steps["nonfinite"] > 0) | ~np.isfinite(batch.steps["norm"])
        if broken.any() and not self._broken:
            self._broken = True
            self._next_look = min(self._next_look, time.monotonic() + BROKEN_SECONDS)

    def take(self, items: Sequence[object]) -> None:
        """Handle a batch, which may be empty, then look at the run where it is time."""
        super().take(items)
        if self._steps_since and time.monotonic() >= self._next_look:
            self._look()

    def close(self) -> None:
        """Look a last time."""
        if self._steps_since:
            self._look()

    def _look(self) -> None:
        began = time.monotonic()
        self._steps_since = 0
        if self._head.path is not None:
            for finding in diagnose(self._head.path):
                key = finding.id, finding.optimizer
                if finding.severity == "error" and key not in self._told:
                    self._told.add(key)
                    self._tell(finding)
        spent = time.monotonic() - began
        self._next_look = time.monotonic() + max(self._every, REST * spent)

    def _tell(self, finding: Finding) -> None:
        step = finding.steps[0] if finding.steps else None
        self._head.write_event("alert", finding.to_dict(), step)
        if not self._quiet:
            print(in_words(finding), file=sys.stderr, flush=True)
        if self._call is not None:
            _deliver(self._call, finding)
        if self.target:
            self._post(finding)

    def __str__(self) -> str:
        return self.kind  # the address is a secret

    def _post(self, finding: Finding) -> None:
        if self._posting is not None and self._posting.alive:
            warn(f"an alert ({finding.id}) was not sent: the webhook still holds the one before")
            return
        failures: list[str] = []

        def deliver() -> None:
            try:
                post(self.target, finding.to_dict())
            except Exception as error:  # whatever a network raises; messages may hold the address
                failures.append(_why(error))

        self._posting = HiddenThread(deliver, deaf=False)
        if not self._posting.join(DELIVERY_SECONDS):
            failures.append(f"the webhook has not answered within {DELIVERY_SECONDS:.0f} s")
        if failures:
            warn(f"an alert ({finding.id}) did not arrive: {failures[0]}")


def _why(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the webhook answered HTTP {error.code}"
    if isinstance(error, TimeoutError):
        return "the webhook is too slow"
    reason = getattr(error, "reason", None)
    told = reason.strerror if isinstance(reason, OSError) and reason.strerror else ""
    return f"{type(error).__name__}{f': {told}' if told else ''}"


def _deliver(way: Callable[[Finding], object], finding: Finding) -> None:
    try:
        way(finding)
    except Exception as error:  # whatever a user's function raises
        warn(f"an alert ({finding.id}) did not arrive: {error} ({type(error).__name__})")


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


def post(address: str, data: Mapping[str, object]) -> None:
    """Post JSON to a webhook; the answer's body is not read.

    Raises:
        OSError: it cannot be reached, or answers with an error, or with a redirect to elsewhere.
        UsageError: not an http address.
    """
    check_address(address)
    text = f"{data.get('id')}: {data.get('title')}"  # what chat services show
    body = json.dumps({"text": text, **data}).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(_SamePlace)
    with opener.open(request, timeout=WEBHOOK_SECONDS):
        pass


class _SamePlace(urllib.request.HTTPRedirectHandler):
    """Follows a redirect that keeps scheme, host, port and method, and no other."""

    max_redirections = 3

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """The request to send next, or None: the redirect is then an error."""
        before, after = urlsplit(req.full_url), urlsplit(newurl)
        if code not in (307, 308) or (before.scheme, before.netloc) != (after.scheme, after.netloc):
            return None
        return urllib.request.Request(newurl, req.data, dict(req.header_items()))


SINK = Alerts
