"""Accelerate: one call after `prepare`.

`attach` alone already understands a prepared optimizer. This adds what Accelerate
knows and an optimizer does not: which process writes the run file, and where
checkpoints keep the policy's state.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from steadygrad.policies import Policy
from steadygrad.torch import Steady
from steadygrad.torch import attach as attach_torch

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["attach"]


def attach(
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    clip: str | Policy | Mapping[str, str | Policy] = "norm:1.0",
    model: torch.nn.Module | None = None,
    on_nonfinite: str | None = None,
    run: str | os.PathLike[str] | None = None,
) -> Steady:
    """Attach to an optimizer that ``accelerator.prepare`` returned.

    Args:
        accelerator: the `accelerate.Accelerator`.
        optimizer: its prepared optimizer.
        clip: a spec such as ``"norm:1.0"``, a policy, or ``{name pattern: spec}``.
        model: the prepared model, for names.
        on_nonfinite: as in `steadygrad.torch.attach`.
        run: path of a new run file, written by the main process alone.

    Returns:
        The handle, registered with ``accelerator.save_state`` and ``load_state``.

    Raises:
        UsageError: an argument is wrong.
        AttachError: the optimizer is attached already.

    Example:
        >>> from accelerate import Accelerator
        >>> accelerator = Accelerator(cpu=True)
        >>> model = accelerator.prepare(torch.nn.Linear(2, 1))
        >>> optimizer = accelerator.prepare(torch.optim.SGD(model.parameters(), lr=0.1))
        >>> steady = attach(accelerator, optimizer, clip="norm:1.0", model=model)
        >>> accelerator.backward(model(torch.ones(1, 2)).sum() * 100)
        >>> optimizer.step()
        >>> steady.last.action
        'clip'
        >>> steady.detach()
    """
    unwrapped = accelerator.unwrap_model(model) if model is not None else None
    path = run if accelerator.is_main_process else None
    steady = attach_torch(optimizer, clip, model=unwrapped, on_nonfinite=on_nonfinite, run=path)
    accelerator.register_for_checkpointing(steady)
    return steady
