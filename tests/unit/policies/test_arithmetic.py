"""What was done to gradients, told from figures before and after."""

from __future__ import annotations

import math

import numpy as np
import pytest

from steadygrad.policies.arithmetic import change_of
from steadygrad.policies.in_numpy import scalar
from steadygrad.stats import GradientStats


def _figures(norm: float, max_abs: float) -> GradientStats:
    one = np.ones(1)
    return GradientStats(("w",), one * norm, one * max_abs, one * 0, one * 0, (4,), scalar(norm))


@pytest.mark.parametrize(("max_abs", "is_scaled"), [(3.0, True), (1.2, False)])
def test_one_tensor_is_scaled_only_where_all_of_it_is(max_abs: float, is_scaled: bool) -> None:
    change = change_of(_figures(4.0, max_abs), _figures(2.0, 1.5))
    assert change is not None
    assert math.isnan(change.limit) != is_scaled
