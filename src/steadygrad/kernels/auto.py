"""The form that picks: C for what it can serve, plain torch for the rest.

The usual list, all dense and on the CPU, costs one call and no look at any tensor
from Python. A list that C refuses is split.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from steadygrad.kernels import native, reference
from steadygrad.kernels.reference import Read


def read(tensors: Sequence[torch.Tensor], norm_type: float) -> Read:
    """Measure; see `steadygrad.kernels.read`."""
    if not native.available():
        return reference.read(tensors, norm_type)
    figures, refused = native.try_read(list(tensors), norm_type)
    if refused == native.ALL_SERVED:
        return figures
    if any(tensor.device.type != "cpu" for tensor in tensors):
        return reference.read(tensors, norm_type)
    return _read_split(tensors, norm_type)


def scale_(tensors: Sequence[torch.Tensor], coefs: Any) -> None:
    """Multiply; see `steadygrad.kernels.scale_`."""
    if not native.available() or (isinstance(coefs, torch.Tensor) and coefs.device.type != "cpu"):
        reference.scale_(tensors, coefs)
        return
    each = native.each_coef(coefs, len(tensors))
    if native.try_scale(list(tensors), each) == native.ALL_SERVED:
        return
    for index, tensor in enumerate(tensors):
        coef = each[index : index + 1]
        if native.try_scale([tensor], coef) != native.ALL_SERVED:
            reference.scale_([tensor], coef)


def _read_split(tensors: Sequence[torch.Tensor], p: float) -> Read:
    rows = []
    for tensor in tensors:
        figures, refused = native.try_read([tensor], p)
        rows.append(figures if refused == native.ALL_SERVED else reference.read([tensor], p))
    return Read(
        np.concatenate([row.norms for row in rows]),
        np.concatenate([row.max_abs for row in rows]),
        np.concatenate([row.nonfinite for row in rows]),
        np.concatenate([row.zeros for row in rows]),
    )
