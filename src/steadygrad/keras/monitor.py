"""GradientMonitor: what the gradients do, in the logs of `fit` and in the run file."""

from __future__ import annotations

import math
import os

import keras

from steadygrad.errors import UsageError
from steadygrad.keras.attaching import Steady, attach
from steadygrad.keras.classes import hook_of
from steadygrad.runlog import RunWriter, TrainingStopped


class GradientMonitor(keras.callbacks.Callback):  # type: ignore[misc]
    """Put ``grad_norm`` (before clipping), ``clip_coef`` and ``clip_rate`` into the logs.

    Without a handle it attaches itself with ``clip="none"``: it observes and changes nothing.
    The figures are read once a batch (once per ``steps_per_execution`` batches).

    Args:
        steady: the handle that `attach` gave.
        run: a path for a new run file or an open `RunWriter`, where the handle has none.

    Raises:
        UsageError: the handle and this name a run file each, or no handle is given.

    Example:
        >>> import keras, numpy as np, steadygrad.keras as sg
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile(optimizer="sgd", loss="mse")
        >>> x = np.ones((8, 2), "float32")
        >>> history = model.fit(x, x[:, :1], verbose=0, callbacks=[sg.GradientMonitor()])
        >>> sorted(history.history)
        ['clip_coef', 'clip_rate', 'grad_norm', 'loss']
    """

    def __init__(
        self,
        steady: Steady | None = None,
        run: str | os.PathLike[str] | RunWriter | None = None,
    ) -> None:
        super().__init__()
        if steady is not None and not isinstance(steady, Steady):
            raise UsageError(
                f"steady must be the handle that attach gave, got {type(steady).__name__}; type "
                "GradientMonitor(steadygrad.keras.attach(optimizer, clip='norm:1.0'))"
            )
        if steady is not None and run is not None and steady.writer is not None:
            raise UsageError("both attach and GradientMonitor were given a run; give it to attach")
        self.steady = steady
        self._run = run
        self._attached_here = False
        self._norms: list[float] = []
        self._mean = (0, 0.0)

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        if self.steady is None:
            self._find_or_attach(model)
            return
        self.steady.meet(model)
        if self._run is not None:
            self.steady.write_to(self._run)
            self._run = None

    def _find_or_attach(self, model: keras.Model) -> None:
        inner = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        if hook_of(inner) is not None:
            outer = model.optimizer if inner is not model.optimizer else None
            self.steady = Steady(inner, outer, model, self._run)
        else:
            self.steady = attach(model.optimizer, "none", model=model, run=self._run)
            self._attached_here = True
        self._run = None

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        assert self.steady is not None
        self.steady.look_at(self.model)

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._norms = []
        self._mean = (0, 0.0)
        assert self.steady is not None
        self.steady.begin_epoch()

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        assert self.steady is not None
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()
        logs = {} if logs is None else logs
        mean = float(logs.get("loss", math.nan))
        loss = self.steady.averaged_loss()
        if loss is None and "loss" in logs:
            loss = self._loss(batch + 1, mean)
        try:
            if self.steady.step_is_over(loss):
                self._mean = (batch + 1, mean)
        except TrainingStopped:
            self.model.stop_training = True  # as Keras' own callbacks do
        last = self.steady.seen_last
        if math.isfinite(last.norm):  # one NaN would stay in the progress bar's average
            self._norms.append(last.norm)
            logs["grad_norm"] = last.norm
        logs["clip_coef"] = last.coef
        logs["clip_rate"] = self.steady.clip_rate

    def _loss(self, batches: int, mean: float) -> float:
        """The loss since the last step: Keras' logs hold the mean since the epoch began."""
        before, last = self._mean
        since = batches - before
        return (batches * mean - before * last) / since if since > 0 else mean

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        assert self.steady is not None
        if logs is not None:
            mean = sum(self._norms) / len(self._norms) if self._norms else math.nan
            logs["grad_norm"] = mean
            logs["clip_coef"] = self.steady.seen_last.coef
            logs["clip_rate"] = self.steady.clip_rate

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        assert self.steady is not None
        if not self.steady.has_stepped:
            kind = type(self.steady.optimizer).plain.__name__
            self.steady.hook.use.tell_of_no_step(kind, " in fit")
        self.steady.flush()
        if self._attached_here:
            self.steady.detach()
            self._attached_here = False

    def _repr_html_(self) -> str | None:
        return None if self.steady is None else self.steady.card.as_html()
