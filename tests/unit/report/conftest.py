"""Runs to report on, made of arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from steadygrad.runlog import Event, Run, TensorInfo


def make_run(
    steps: int = 400,
    *,
    tensors: int = 6,
    clip: float = np.inf,
    spikes: tuple[int, ...] = (90, 250),
    nan_from: int | None = None,
    names: tuple[str, ...] = (),
    seed: int = 0,
    info: dict[str, Any] | None = None,
    events: tuple[Event, ...] = (),
) -> Run:
    """A run with a falling loss, lognormal norms, spikes of 40, and perhaps a NaN end."""
    r = np.random.default_rng(seed)
    norm = np.exp(r.normal(0.0, 0.2, steps))
    norm[list(spikes)] = 40.0
    loss = np.linspace(2.3, 0.5, steps) + r.normal(0, 0.05, steps)
    per_tensor = norm[:, None] * np.linspace(0.1, 0.6, tensors)
    broken = np.zeros((steps, tensors))
    if nan_from is not None:
        norm[nan_from:], per_tensor[nan_from:], broken[nan_from:] = np.nan, np.nan, 2
        loss[nan_from + 1 :] = np.nan
    over = np.isfinite(norm) & (norm > clip)
    described = [
        TensorInfo(
            names[i] if i < len(names) else f"layer{i}.weight", (4, 4), "float32", "Linear", i
        )
        for i in range(tensors)
    ]
    return Run.from_arrays(
        steps={
            "norm": norm,
            "loss": loss,
            "threshold": np.full(steps, clip),
            "coef": np.where(over, clip / norm, 1.0),
            "action": np.where(over, "clip", "none").astype("U4"),
            "nonfinite": broken.sum(axis=1).astype(int),
        },
        tensors=described,
        tensor_norms=per_tensor,
        tensor_nonfinite=broken,
        events=events,
        info={"policy": "none" if clip == np.inf else f"norm:{clip}", **(info or {})},
    )


@pytest.fixture(scope="session")
def a_run() -> Callable[..., Run]:
    """`make_run`."""
    return make_run
