"""Weights & Biases: a run of its own beside the script's.

A run of its own, since wandb drops what is logged for an earlier step than the last: writing
into the script's run from another thread would lose the script's figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from steadygrad.errors import needed_for
from steadygrad.runlog import Event
from steadygrad.runlog.items import Head
from steadygrad.sinks.scalars import ScalarSink

if TYPE_CHECKING:
    from types import ModuleType

    from wandb import Run

STEP = "optimizer_step"


class WeightsAndBiases(ScalarSink):
    """A run in the project named by the target; ``WANDB_MODE=offline`` is respected."""

    kind = "wandb"

    def open(self, head: Head) -> None:
        """Start the run."""
        wandb = _wandb()
        own = wandb.run
        self._run: Run = wandb.init(
            project=self.target or (own.project if own else "steadygrad"),
            group=(own.group or own.name or own.id) if own else None,
            job_type="steadygrad",
            config={key: value for key, value in head.info.items() if key != "command"},
            reinit="create_new",
            # the script's own run, or nobody, watches machine and console
            settings=wandb.Settings(console="off", x_disable_stats=True, silent=True),
        )
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)

    def scalars(self, values: dict[str, float], step: int, time: float) -> None:
        """One row of history."""
        self._run.log(values | {STEP: step})

    def event(self, event: Event) -> None:
        """Pass an alert on to those whom W&B tells of alerts."""
        alert = self.told_alert(event)
        if alert is not None:
            level = _wandb().AlertLevel
            grave = alert.severity == "error"
            self._run.alert(alert.title, alert.text, level=level.ERROR if grave else level.WARN)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def _wandb() -> ModuleType:
    with needed_for("the Weights & Biases sink", "wandb", "wandb"):
        import wandb
    return wandb


SINK = WeightsAndBiases
