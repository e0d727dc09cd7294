"""Trackio: a run in its local database, for ``trackio show``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steadygrad.errors import needed_for
from steadygrad.runlog import Event
from steadygrad.runlog.items import Head
from steadygrad.sinks.scalars import ScalarSink

if TYPE_CHECKING:
    from types import ModuleType

    from trackio import Run


class Trackio(ScalarSink):
    """A run in the local project named by the target."""

    kind = "trackio"

    def open(self, head: Head) -> None:
        """Start the run."""
        trackio = _trackio()
        self._run: Run = trackio.init(
            project=self.target or "steadygrad",
            embed=False,
            auto_log_cpu=False,  # the machine is not what is measured here
            auto_log_gpu=False,
        )

    def scalars(self, values: dict[str, float], step: int, time: float) -> None:
        """One row."""
        self._run.log(values, step=step)

    def event(self, event: Event) -> None:
        """Pass an alert on to those whom Trackio tells of alerts."""
        alert = self.told_alert(event)
        if alert is not None:
            level = _trackio().AlertLevel
            grave = alert.severity == "error"
            self._run.alert(alert.title, alert.text, level=level.ERROR if grave else level.WARN)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def _trackio() -> ModuleType:
    with needed_for("the Trackio sink", "trackio", "trackio"):
        import trackio
    module: ModuleType = trackio
    return module


SINK = Trackio
