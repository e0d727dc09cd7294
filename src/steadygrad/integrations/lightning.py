"""Lightning: a callback for automatic and manual optimization.

Lightning hands every optimizer a closure that runs forward and backward, so the
gradients exist only inside `optimizer.step()`: exactly where `attach` acts. The
Trainer's own `gradient_clip_val` would clip first and is refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from steadygrad.errors import UsageError, needed_for
from steadygrad.integrations.common import ClipRate, figures, run_path
from steadygrad.policies import NoClip, Policy
from steadygrad.policies.choice import policy_of
from steadygrad.runlog import RunWriter
from steadygrad.torch import Steady, attach

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

with needed_for("steadygrad's Lightning callback", "lightning", "lightning"):
    from lightning.pytorch import Callback

__all__ = ["SteadyGradCallback"]


class SteadyGradCallback(Callback):  # type: ignore[misc]
    """Clip, guard and record a Lightning training: ``Trainer(callbacks=[this])``.

    Args:
        clip: a spec such as ``"norm:1.0"``, a policy, or ``{name pattern: spec}``; ``"none"`` only
            observes, beside the Trainer's own `gradient_clip_val` too.
        run: path of a new run file; a resumed training writes beside it (``-from<step>``).
        on_nonfinite: as in `steadygrad.torch.attach`.
        log_tensors: also log one norm a parameter.

    Raises:
        UsageError: the Trainer also has `gradient_clip_val` (when fitting starts).

    Example:
        >>> SteadyGradCallback(clip="norm:0.5").state_dict()
        {'steady': []}
    """

    def __init__(
        self,
        clip: str | Policy | Mapping[str, str | Policy] = "norm:1.0",
        run: str | os.PathLike[str] | None = None,
        on_nonfinite: str | None = None,
        log_tensors: bool = True,
    ) -> None:
        super().__init__()
        self.clip = clip
        self.run = run
        self.on_nonfinite = on_nonfinite
        self.log_tensors = log_tensors
        self.steady: list[Steady] = []
        self._writer: RunWriter | None = None
        self._saved: list[dict[str, object]] = []
        self._rates: list[ClipRate] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.gradient_clip_val and not isinstance(policy_of(self.clip), NoClip):
            raise UsageError(
                f"Trainer(gradient_clip_val={trainer.gradient_clip_val}) would clip before "
                f"steadygrad does: remove it, and type SteadyGradCallback(clip="
                f"'norm:{float(trainer.gradient_clip_val)}') for the same threshold"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.run is not None and trainer.is_global_zero:
            self._writer = RunWriter(run_path(self.run, trainer.global_step))
        self.steady = [
            attach(
                optimizer,
                self.clip,
                model=pl_module,
                on_nonfinite=self.on_nonfinite,
                run=self._writer,
                optimizer_index=index,
            )
            for index, optimizer in enumerate(trainer.optimizers)
        ]
        self._rates = [ClipRate() for _ in self.steady]
        for steady, saved in zip(self.steady, self._saved, strict=False):
            steady.load_state_dict(saved)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        for index, (steady, rate) in enumerate(zip(self.steady, self._rates, strict=True)):
            if not steady.steps:
                continue
            record = steady.last
            logged = figures(record, rate.add(record), steady.stats, self.log_tensors)
            prefix = f"optimizer{index}/" if len(self.steady) > 1 else ""
            pl_module.log_dict({prefix + name: value for name, value in logged.items()})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._close()

    def state_dict(self) -> dict[str, object]:
        """What Lightning keeps in its checkpoints."""
        return {"steady": [steady.state_dict() for steady in self.steady] or self._saved}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Resume the policies; takes effect when training starts."""
        self._saved = cast("list[dict[str, object]]", state_dict["steady"])

    def _close(self) -> None:
        self._saved = [steady.state_dict() for steady in self.steady]
        for steady in self.steady:
            steady.detach()
        self.steady = []
        if self._writer is not None:
            self._writer.close()
            self._writer = None
