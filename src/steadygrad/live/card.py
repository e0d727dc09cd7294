"""The live card: a run's norms below the cell that trains, drawn anew about once a second.

It hears the steps in the thread that writes them and draws in one of its own, so that a page that
does not answer costs the training nothing. What goes wrong here ends the card, and nothing else.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from steadygrad.live.shell import Shell
from steadygrad.notebook.cards import MOST_POINTS, Card
from steadygrad.runlog.hidden import HiddenThread, stay_hidden
from steadygrad.runlog.items import Head, Item, StepItem
from steadygrad.runlog.records import StepRecord

if TYPE_CHECKING:
    from steadygrad.report.headline import Verdict

EVERY_SECONDS = 1.0
REST = 400.0
"""Times as long as a drawing took until the next: 0.25 % of one core at most."""


class LiveCard:
    """A tap of a run: shows its steps below the cell in which they are taken.

    Args:
        shell: of the notebook.
    """

    speaks = False

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._name = ""
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._figures = CardFigures()
        self._drawn = 0
        self._display = ""
        self._in_cell = True
        self._pid = os.getpid()
        self._thread: HiddenThread | None = None

    # -- what a RunWriter calls, in its thread ---------------------------------------------------

    def begin(self, head: Head) -> None:
        """The run begins."""
        self._name = "" if head.path is None else head.path.name
        try:
            self._thread = HiddenThread(self._run)
        except RuntimeError:  # the system allows no further thread: no card
            self._stop.set()

    def feed(self, items: list[Item]) -> None:
        """Steps were taken."""
        if not self._stop.is_set():
            self._figures.add([item.record for item in items if isinstance(item, StepItem)])

    def finish(self, timeout: float) -> None:
        """The run is over."""
        self._stop.set()

    # -- what cells tell, in the thread that runs them -------------------------------------------

    def cell_begins(self) -> None:
        """What comes is shown below another cell."""
        with self._lock:
            self._display, self._in_cell = "", True
            self._drawn = self._figures.steps

    def cell_ends(self, error: str, judge: Callable[[], Verdict] | None = None) -> None:
        """A last drawing, where there is one of this cell already.

        Args:
            error: name of the exception that ended the cell; empty for none.
            judge: gives the verdict on the run so far; None where it is said elsewhere.
        """
        with self._lock:
            self._in_cell = False
            if self._display and os.getpid() == self._pid:
                self._try_to_draw(f"Ended by {error}" if error else "Trained", judge)

    # -- the thread that draws -------------------------------------------------------------------

    def _run(self) -> None:
        pause = EVERY_SECONDS
        while not self._stop.wait(pause):
            began = time.thread_time()
            with self._lock:
                if self._in_cell and self._figures.steps > self._drawn:
                    self._try_to_draw("Training")
            stay_hidden()
            pause = max(EVERY_SECONDS, REST * (time.thread_time() - began))

    def _try_to_draw(self, state: str, judge: Callable[[], Verdict] | None = None) -> None:
        try:
            self._draw(state, judge)
        except Exception:  # whatever a page's publisher raises: the training goes on without a card
            self._stop.set()

    def _draw(self, state: str, judge: Callable[[], Verdict] | None) -> None:
        self._drawn = self._figures.steps
        card = self._figures.as_card(f"{state}: {self._name}" if self._name else state)
        if judge is not None:
            card = _judged(card, judge)
        update = bool(self._display)
        if not update:
            self._display = f"steadygrad-{id(self):x}-{self._shell.execution_count}"
        self._shell.display_pub.publish(
            {"text/html": card.as_html(), "text/plain": card.as_text()},
            transient={"display_id": self._display},
            update=update,
        )


class CardFigures:
    """What a live card shows of the first optimizer's steps; takes the same memory however many.

    Attributes:
        steps: how many there were.

    Example:
        >>> figures = CardFigures()
        >>> figures.add([StepRecord(0, norm=2.0), StepRecord(1, norm=math.nan, nonfinite=3)])
        >>> print(figures.as_card("Training").as_text().splitlines()[0])
        Training
        >>> figures.steps, figures.as_card("Training").level
        (2, 'error')
    """

    def __init__(self) -> None:
        self.steps = 0
        self._optimizer: int | None = None
        self._norms: list[float] = []
        self._stretch, self._in_stretch = 1, 0
        self._clipped = self._skipped = 0
        self._first_broken: int | None = None
        self._last: StepRecord | None = None

    def add(self, records: list[StepRecord]) -> None:
        """Count steps in."""
        for record in records:
            if self._optimizer is None:
                self._optimizer = record.optimizer
            if record.optimizer == self._optimizer:
                self._add(record)

    def _add(self, record: StepRecord) -> None:
        self.steps += 1
        self._last = record
        self._clipped += record.coef < 1.0
        self._skipped += record.action == "skip"
        norm = record.norm
        if self._first_broken is None and not math.isfinite(norm):
            self._first_broken = record.step
        if self._in_stretch == 0:
            self._norms.append(norm)
        else:
            self._norms[-1] = _worse(self._norms[-1], norm)
        self._in_stretch = (self._in_stretch + 1) % self._stretch
        if len(self._norms) == 2 * MOST_POINTS and self._in_stretch == 0:
            pairs = zip(self._norms[::2], self._norms[1::2], strict=True)
            self._norms = [_worse(a, b) for a, b in pairs]
            self._stretch *= 2

    def as_card(self, title: str) -> Card:
        """The steps so far.

        Args:
            title: one sentence.
        """
        last = self._last
        if last is None:
            return Card(title, "info")
        figures = [("steps", f"{self.steps:,}"), ("last norm", f"{last.norm:.3g}")]
        if not math.isnan(last.loss):
            figures += [("loss", f"{last.loss:.4g}")]
        if math.isfinite(last.threshold):
            figures += [("threshold", f"{last.threshold:.3g}")]
        figures += [("clipped", f"{self._clipped / self.steps:.1%}")]
        if self._skipped:
            figures += [("skipped", f"{self._skipped:,}")]
        broken = self._first_broken
        sentences = () if broken is None else (f"The first NaN or inf came at step {broken}.",)
        threshold = last.threshold if math.isfinite(last.threshold) else None
        level = "info" if broken is None else "error"
        norms = tuple(self._norms)
        return Card(title, level, tuple(figures), norms, threshold, sentences)


def _judged(card: Card, judge: Callable[[], Verdict]) -> Card:
    """The card with its verdict, or why there is none: a cell that is over is not left training."""
    try:
        verdict = judge()
    except Exception as error:
        without = f"No verdict could be made of the run ({type(error).__name__})."
        return replace(card, sentences=(*card.sentences, without))
    return replace(card, level=verdict.level, sentences=(verdict.sentence,))


def _worse(a: float, b: float) -> float:
    """The one that a curve must not lose: what is not finite, else the larger."""
    return a if not math.isfinite(a) or a >= b else b
