"""PyTorch: exact drop-ins for clipping, and `attach` for everything else.

import steadygrad.torch as sg
"""

from __future__ import annotations

from steadygrad.errors import MissingExtraError

try:
    import torch as _torch  # noqa: F401
except ImportError as _error:
    raise MissingExtraError("torch", "torch", "steadygrad.torch") from _error

from steadygrad.torch.attach import attach
from steadygrad.torch.steady import Steady

__all__ = ["Steady", "attach"]
