"""What every handle of a run that is being recorded has: it reads back what was just trained."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from steadygrad.errors import UsageError
from steadygrad.notebook.cards import Card
from steadygrad.runlog.records import StepRecord
from steadygrad.runlog.writer import RunWriter
from steadygrad.text import printable

if TYPE_CHECKING:  # loaded when asked for: a training need not pay for them
    from steadygrad.calibration import Calibration
    from steadygrad.notebook.page import Page
    from steadygrad.rules import Findings
    from steadygrad.runlog import Run


class Handle(ABC):
    """Reads the run back, and shows itself as a card in a notebook."""

    how_to_record = ""
    """What to type so that a run is recorded."""

    @abstractmethod
    def flush(self) -> None:
        """Wait until every finished step can be read back from the run file."""

    @abstractmethod
    def _recorded_by(self) -> RunWriter | None:
        """The run file's writer; None without one."""

    @abstractmethod
    def _policy(self) -> str:
        """The clipping policy as a spec; empty where it is not known."""

    @abstractmethod
    def _last(self) -> StepRecord | None:
        """The last step; None before the first."""

    @property
    def run(self) -> Run:
        """The run so far, read back from its file.

        Raises:
            UsageError: no run is recorded.
        """
        writer = self._recorded_by()
        if writer is None:
            raise UsageError(f"no run is recorded: type {self.how_to_record} to read one back")
        from steadygrad.runlog import open_run

        self.flush()
        return open_run(writer.path)

    def diagnose(self) -> Findings:
        """What `steadygrad.diagnose` says of the run so far.

        Raises:
            UsageError: no run is recorded.
        """
        from steadygrad.rules import diagnose

        return diagnose(self.run)

    def calibrate(self) -> Calibration:
        """What `steadygrad.calibrate` recommends from the run so far.

        Raises:
            UsageError: no run is recorded.
            CalibrationError: the run gives no threshold; says why.
        """
        from steadygrad.calibration import calibrate

        return calibrate(self.run)

    def report(self, out: str | os.PathLike[str] = "report.html") -> Page:
        """Write the report of the run so far; a notebook shows it, elsewhere it is a path.

        Args:
            out: the HTML file; replaced where it exists.

        Returns:
            The file's path, which a notebook draws as the page.

        Raises:
            UsageError: no run is recorded, or the folder does not exist.
        """
        from steadygrad.notebook.page import Page
        from steadygrad.report import write_report

        return Page(write_report([self.run], out, force=True))

    def __repr__(self) -> str:
        writer = self._recorded_by()
        facts = [self._policy(), "" if writer is None else f"recorded in {writer.path.name}"]
        words = ", ".join(filter(None, facts)) or "attached"
        return printable(f"<steadygrad {type(self).__name__}: {words}>")

    def _repr_html_(self) -> str:
        return self.card.as_html()

    @property
    def card(self) -> Card:
        """The handle as a notebook shows it: policy, last step, the norms so far."""
        run = None if self._recorded_by() is None else self.run
        last = self._last() or _last_of(run)
        figures = [("policy", self._policy())] if self._policy() else []
        figures.append(("steps", "0" if last is None else f"{last.step + 1}"))
        if last is not None:
            figures += [("last norm", f"{last.norm:.3g}"), ("action", str(last.action))]
        if run is None or not len(run):
            note = f"Type {self.how_to_record} to see norms, findings and a threshold here."
            return Card("Attached", "info", tuple(figures), sentences=(note,))
        return _with_the_run(run, figures)


def _last_of(run: Run | None) -> StepRecord | None:
    """The last step in the file: what a handle that was detached still knows."""
    if run is None or not len(run):
        return None
    row = run.step_rows(slice(-1, None))[0]
    return StepRecord(int(row["step"]), norm=float(row["norm"]), action=row["action"].item())


def _with_the_run(run: Run, figures: Sequence[tuple[str, str]]) -> Card:
    """Norms over time, threshold and gravest finding beside a handle's own figures."""
    from steadygrad.rules import diagnose

    card, findings = run.card, diagnose(run)
    level = findings[0].severity if findings else card.level
    sentences = (f"{findings[0].id}: {findings[0].title}",) if findings else ()
    shown = (*figures, *card.figures[2:])
    threshold = float(run.steps.threshold[-1])
    return Card(card.title, level, shown, card.curve, threshold, sentences)
