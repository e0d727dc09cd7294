"""PyTorch: exact drop-ins for clipping, and `attach` for everything else.

import steadygrad.torch as sg
"""

from __future__ import annotations

from steadygrad.errors import needed_for

with needed_for("steadygrad.torch", "torch", "torch"):
    import torch as _torch  # noqa: F401

from steadygrad.torch.dropins.clip_norm import (
    clip_grad_norm_,
    clip_grads_with_norm_,
    get_total_norm,
)
from steadygrad.torch.dropins.clip_value import clip_grad_value_
from steadygrad.torch.dropins.figures import measure
from steadygrad.torch.step.attaching import attach
from steadygrad.torch.step.handle import Steady

__all__ = [
    "Steady",
    "attach",
    "clip_grad_norm_",
    "clip_grad_value_",
    "clip_grads_with_norm_",
    "get_total_norm",
    "measure",
]
