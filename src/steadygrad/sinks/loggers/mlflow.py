"""MLflow: a run in any tracking store, by the client that shares no state with the script.

MLflow keeps NaN, and turns an infinity into the largest float; the count of non-finite
elements beside it tells the two apart.
"""

from __future__ import annotations

import re
import time as clock
from typing import TYPE_CHECKING

from steadygrad.errors import needed_for
from steadygrad.runlog.items import Head
from steadygrad.sinks.scalars import ScalarSink

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from mlflow import MlflowClient
    from mlflow.entities import Metric

MOST_METRICS = 1000  # in one call of the tracking server
EXPERIMENT = "steadygrad"

FACTS = ("policy", "framework", "steadygrad", "seed", "device")
"""Facts that become the run's parameters."""


class MlFlow(ScalarSink):
    """A run in the tracking store named by the target, e.g. ``sqlite:///mlflow.db``."""

    kind = "mlflow"

    def open(self, head: Head) -> None:
        """Create the run."""
        entities, client = _mlflow()
        self._metric = entities.Metric
        self._client: MlflowClient = client(tracking_uri=self.target or None)
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        number = (
            experiment.experiment_id if experiment else self._client.create_experiment(EXPERIMENT)
        )
        self._run = self._client.create_run(number).info.run_id
        facts = [(key, head.info.get(key)) for key in FACTS]
        parameters = [
            entities.Param(key, str(fact)[:500]) for key, fact in facts if fact is not None
        ]
        self._client.log_batch(self._run, params=parameters)
        self._waiting: list[Metric] = []

    def scalars(self, values: dict[str, float], step: int, time: float) -> None:
        """Collect metrics: one call a batch, since each is a transaction."""
        stamp = int((clock.time() if time != time else time) * 1000)
        self._waiting += [
            self._metric(metric_key(name), value, stamp, step) for name, value in values.items()
        ]

    def take(self, items: Sequence[object]) -> None:
        """Handle a batch, then send all its metrics."""
        super().take(items)
        while items and self._waiting:
            part, self._waiting = self._waiting[:MOST_METRICS], self._waiting[MOST_METRICS:]
            self._client.log_batch(self._run, metrics=part)

    def close(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self._run)


def metric_key(name: str) -> str:
    """A name as MLflow takes it: letters, digits, ``_ - . / : space``, 250 at most.

    Example:
        >>> metric_key("grad_norm/encoder[0].weight")
        'grad_norm/encoder_0_.weight'
    """
    return re.sub(r"[^\w\-./ :]", "_", name, flags=re.ASCII)[:250]


def _mlflow() -> tuple[ModuleType, type[MlflowClient]]:
    with needed_for("the MLflow sink", "mlflow", "mlflow"):
        from mlflow import entities
        from mlflow.tracking import MlflowClient
    return entities, MlflowClient


SINK = MlFlow
