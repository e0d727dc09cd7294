"""Clips by arithmetic, told from the rows of steps."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from steadygrad.launch.arithmetic_clips import STEP, ArithmeticClips
from steadygrad.policies.stepping import CLIP
from steadygrad.runlog.records import TensorInfo

ACTION = STEP.index("action")


def _row(tensors: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    norms = [np.linalg.norm(tensor) for tensor in tensors]
    most = [np.abs(tensor).max() for tensor in tensors]
    head = [float(np.linalg.norm(norms)), np.inf, 1.0, 1.0, 0.0]
    return np.array([*head, *norms, *most, *[0.0] * (2 * len(tensors))])


@pytest.mark.parametrize("kind", ["bound", "signs"])
def test_signs_are_no_clip_by_value(kind: str) -> None:
    draw = np.random.default_rng(0)
    shapes = (4, 8), (8,)
    clips = ArithmeticClips(
        [TensorInfo(f"w{i}", shape, "float32") for i, shape in enumerate(shapes)]
    )
    for _ in range(4):
        before = [draw.normal(size=shape) for shape in shapes]
        after = [np.clip(g, -0.5, 0.5) if kind == "bound" else np.sign(g) for g in before]
        row = clips.judged(_row(before), _row(after))
        assert (row[ACTION] == CLIP) == (kind == "bound")
