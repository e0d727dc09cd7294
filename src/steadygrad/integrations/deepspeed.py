"""DeepSpeed: watch the engine's own clipping.

A DeepSpeed engine partitions, reduces and clips gradients by itself, and under ZeRO
no process ever holds them whole, so clipping stays with the engine
(`gradient_clipping` in its configuration). What it did is read from the engine
after each step and recorded: its global norm, the coefficient that follows from
its formula, and whether the step was applied.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from steadygrad.errors import AttachError
from steadygrad.runlog import RunWriter
from steadygrad.runlog.records import StepRecord, TensorInfo
from steadygrad.stats import GradientStats
from steadygrad.torch import measure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deepspeed import DeepSpeedEngine

__all__ = ["EngineObserver", "observe"]

SCALED = "FP16_UnfusedOptimizer"
"""DeepSpeed's optimizer whose norm still has the loss scale; the others' have not."""


def observe(engine: DeepSpeedEngine, run: str | os.PathLike[str] | RunWriter) -> EngineObserver:
    """Record every optimizer step of a DeepSpeed engine.

    Per-tensor norms are recorded at ZeRO stage 0; from stage 1 on gradients are
    partitioned between processes and only the engine's global norm is known.

    Args:
        engine: what ``deepspeed.initialize`` returned first.
        run: path of a new run file (written by rank 0), or an open writer.

    Returns:
        The observer; `close` ends it.

    Raises:
        AttachError: not a DeepSpeed engine, or one that is observed already.
    """
    if not hasattr(engine, "get_global_grad_norm"):
        raise AttachError(
            f"observe needs a DeepSpeed engine, got {type(engine).__name__}; "
            "type engine, *_ = deepspeed.initialize(...); observe(engine, run='run.db')"
        )
    if isinstance(getattr(engine.step, "__self__", None), EngineObserver):
        raise AttachError("this DeepSpeed engine is observed already; close the first observer")
    return EngineObserver(engine, run)


class EngineObserver:
    """The recording of one engine; see `observe`.

    Attributes:
        last: the last step's record, None before the first.
    """

    def __init__(self, engine: DeepSpeedEngine, run: str | os.PathLike[str] | RunWriter) -> None:
        self.last: StepRecord | None = None
        self._engine = engine
        self._step = 0
        self._loss = math.nan
        self._original = (engine.step, engine.backward)
        self._own = not isinstance(run, RunWriter)
        self._writer = self._open(run) if engine.global_rank == 0 else None
        engine.step, engine.backward = self._observed_step, self._observed_backward

    def _open(self, run: str | os.PathLike[str] | RunWriter) -> RunWriter:
        writer = run if isinstance(run, RunWriter) else RunWriter(run)
        infos = [
            TensorInfo(name, tuple(_full_shape(p)), str(p.dtype).removeprefix("torch."))
            for name, p in self._engine.module.named_parameters()
        ]
        self._ids = writer.add_tensors(infos)
        writer.update_info(framework="torch", observed_by="deepspeed")
        return writer

    def close(self) -> None:
        """End the recording and give the engine its methods back."""
        del self._engine.step, self._engine.backward
        if self._own and self._writer is not None:
            self._writer.close()

    def _observed_backward(self, loss: torch.Tensor, *args: object, **kwargs: object) -> object:
        share = float(loss.detach()) / self._engine.gradient_accumulation_steps()
        self._loss = share if math.isnan(self._loss) else self._loss + share
        return self._original[1](loss, *args, **kwargs)

    def _observed_step(self, *args: object, **kwargs: object) -> object:
        if not self._engine.is_gradient_accumulation_boundary():
            return self._original[0](*args, **kwargs)
        scale = self._loss_scale()
        stats = self._measure(scale)
        result = self._original[0](*args, **kwargs)
        self._record(stats, scale)
        return result

    def _loss_scale(self) -> float:
        """The one in force; the engine changes it in its step. 1 without any."""
        optimizer = self._engine.optimizer
        scaler = getattr(self._engine, "torch_autocast_z0_gradscaler", None)
        if isinstance(scaler, torch.amp.GradScaler):
            return float(scaler.get_scale())
        scale = getattr(optimizer, "loss_scale", getattr(optimizer, "cur_scale", None))
        return 1.0 if scale is None else float(scale)

    def _measure(self, scale: float) -> GradientStats | None:
        """This process's whole gradients, before the engine clips them; None where partitioned.

        Args:
            scale: that of the loss, which the gradients still have.
        """
        if self._engine.zero_optimization_stage() > 0:
            return None
        with_gradients = [
            (n, p) for n, p in self._engine.module.named_parameters() if p.grad is not None
        ]
        if not with_gradients:
            return None
        stats = measure(with_gradients)
        return replace(
            stats,
            norms=stats.norms / scale,
            max_abs=stats.max_abs / scale,
            total_norm=stats.total_norm / scale,
        )

    def _record(self, stats: GradientStats | None, scale: float) -> None:
        engine = self._engine
        norm = engine.get_global_grad_norm()
        if norm is None and stats is not None:
            norm = stats.total_norm
        norm = math.nan if norm is None or norm == -1 else float(norm)  # -1 says non-finite
        if type(engine.optimizer).__name__ == SCALED:
            norm /= scale
        threshold = engine.gradient_clipping() or math.inf
        coef = min(1.0, threshold / (norm + 1e-6)) if math.isfinite(norm) else 1.0
        applied = engine.was_step_applied()
        self.last = StepRecord(
            step=self._step,
            time=time.time(),
            loss=self._loss,
            norm=norm,
            threshold=threshold,
            coef=coef,
            action="skip" if not applied else "clip" if coef < 1 else "none",
            lr=float(engine.get_lr()[0]),
            loss_scale=scale,
            nonfinite=int(sum(map(int, stats.nonfinite))) if stats is not None else 0,
        )
        self._step, self._loss = self._step + 1, math.nan
        if self._writer is not None:
            self._write(self._writer, self.last, stats)

    def _write(self, writer: RunWriter, record: StepRecord, stats: GradientStats | None) -> None:
        if stats is None:
            none = np.zeros(0)
            writer.write_step(record, [], none, none, none, none)
            return
        index = {info: i for i, (info, _) in enumerate(self._engine.module.named_parameters())}
        ids = [self._ids[index[name]] for name in stats.names]
        arrays = (stats.norms, stats.max_abs, stats.nonfinite, stats.zeros)
        writer.write_step(record, ids, *(torch.as_tensor(a).cpu().numpy() for a in arrays))


def _full_shape(parameter: torch.nn.Parameter) -> Sequence[int]:
    return getattr(parameter, "ds_shape", parameter.shape)  # ZeRO 3 leaves an empty shell
