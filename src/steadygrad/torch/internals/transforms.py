"""Private names of torch's transforms and dispatch, which only a search for origins loads."""

from __future__ import annotations

import torch._functorch.apis
import torch._functorch.eager_transforms
import torch.nn.utils.stateless
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["TRANSFORMS", "TorchDispatchMode", "temporarily_clear_interpreter_stack"]

TRANSFORMS: tuple[tuple[object, str], ...] = (
    (torch._functorch.apis, "vmap_impl"),
    (torch._functorch.eager_transforms, "grad_impl"),
    (torch._functorch.eager_transforms, "grad_and_value_impl"),
    (torch.nn.utils.stateless, "_functional_call"),
)
"""What calls a function in a world of its own: where it stands, and its name there."""
