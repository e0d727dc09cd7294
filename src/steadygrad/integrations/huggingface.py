"""Hugging Face `Trainer` and its subclasses (TRL's among them).

The Trainer clips by `max_grad_norm` (1.0 unless set) just before `optimizer.step()`.
The callback takes that over: for the length of `train()` the Trainer's own threshold
is 0, and the norm that it still logs is taken by `steadygrad.torch.clip_grad_norm_`,
since torch's, asked to "clip" at infinity, turns every gradient NaN when one is inf.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from steadygrad.errors import needed_for
from steadygrad.integrations.common import ClipRate, figures, run_path
from steadygrad.policies import NoClip, Policy
from steadygrad.runlog import RunWriter
from steadygrad.torch import Steady, attach, clip_grad_norm_

if TYPE_CHECKING:
    from typing import Any

    from transformers import TrainerControl, TrainerState, TrainingArguments

with needed_for("steadygrad's Trainer callback", "huggingface", "transformers"):
    from transformers import TrainerCallback
    from transformers.trainer_callback import ExportableState
    from transformers.utils import logging

__all__ = ["SteadyGradCallback"]

logger = logging.get_logger(__name__)


class SteadyGradCallback(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Clip, guard and record a Hugging Face training: ``Trainer(..., callbacks=[this])``.

    Args:
        clip: a spec such as ``"norm:1.0"``, a policy, or ``{name pattern: spec}``; ``"none"`` only
            observes, and the Trainer clips by its own `max_grad_norm`.
        run: path of a new run file; a resumed training writes beside it (``-from<step>``).
        on_nonfinite: as in `steadygrad.torch.attach`.
        log_tensors: also log one norm a parameter.

    Raises:
        UsageError: an argument is wrong (when training begins).
        AttachError: the optimizer is layer-wise (then, too).

    Example:
        >>> callback = SteadyGradCallback(clip="norm:1.0")
        >>> callback.state()["args"]["clip"]
        'norm:1.0'
    """

    def __init__(
        self,
        clip: str | Policy | Mapping[str, str | Policy] = "norm:1.0",
        run: str | os.PathLike[str] | None = None,
        on_nonfinite: str | None = None,
        log_tensors: bool = True,
    ) -> None:
        self.clip = clip
        self.run = run
        self.on_nonfinite = on_nonfinite
        self.log_tensors = log_tensors
        self.steady: Steady | None = None
        self._writer: RunWriter | None = None
        self._saved: dict[str, object] = {}
        self._rate = ClipRate()
        self._share = 0.0
        self._theirs: tuple[Any, Callable[..., torch.Tensor]] | None = None

    def state(self) -> dict[str, TrainerState]:
        """What the Trainer keeps in its checkpoints (JSON)."""
        saved = _to_json(self.steady.state_dict()) if self.steady else {}
        clip = self.clip if isinstance(self.clip, str) else str(self.clip)
        return {"args": {"clip": clip}, "attributes": {"_saved": saved}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        if self.run is not None and state.is_world_process_zero:
            self._writer = RunWriter(run_path(self.run, state.global_step))
        try:
            self.steady = attach(
                optimizer, self.clip, model=model, on_nonfinite=self.on_nonfinite, run=self._writer
            )
        except Exception:
            if self._writer is not None:
                self._writer.close()
            raise
        if not isinstance(self.steady.policy, NoClip):  # else the Trainer clips as it would
            self._take_over(args)
        saved = (state.stateful_callbacks.get(type(self).__name__) or {}).get("attributes", {})
        if saved.get("_saved"):
            self.steady.load_state_dict(_from_json(saved["_saved"]))

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        if self.steady is not None and self.steady.steps:
            self._share = self._rate.add(self.steady.last)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        if self.steady is None or not self.steady.steps or logs is None or "loss" not in logs:
            return
        last = self.steady.last
        extra = figures(last, self._share, self.steady.stats, self.log_tensors)
        if "grad_norm" in logs and last.loss_scale != 1.0:
            extra["grad_norm"] = last.norm  # a Trainer that does not clip does not unscale either
        logs.update(extra)
        state.log_history[-1].update(extra)  # the Trainer filed a copy before it called us

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        self._give_back(args)
        if self.steady is not None:
            self.steady.detach()
        if self._writer is not None:
            self._writer.close()

    def _take_over(self, args: TrainingArguments) -> None:
        self._theirs = (args.max_grad_norm, torch.nn.utils.clip_grad_norm_)
        if args.max_grad_norm:
            logger.warning(
                f"steadygrad clips in place of the Trainer's max_grad_norm={args.max_grad_norm}: "
                f"clip={self.clip!r} is in force"
            )
        args.max_grad_norm = 0.0
        torch.nn.utils.clip_grad_norm_ = clip_grad_norm_

    def _give_back(self, args: TrainingArguments) -> None:
        if self._theirs is not None:
            args.max_grad_norm, torch.nn.utils.clip_grad_norm_ = self._theirs
            self._theirs = None


def _from_json(saved: Mapping[str, Any]) -> dict[str, object]:
    arrays = {key: torch.from_numpy(np.asarray(value)) for key, value in saved["state"].items()}
    return {**saved, "state": arrays}


def _to_json(value: object) -> object:
    if isinstance(value, dict):
        return {key: _to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value
