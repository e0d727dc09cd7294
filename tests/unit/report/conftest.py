"""Runs to report on, made of arrays, and a Chromium to look at the pages with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from steadygrad.runlog import Run, TensorInfo

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


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
        info={"policy": "none" if clip == np.inf else f"norm:{clip}", **(info or {})},
    )


@pytest.fixture(scope="session")
def a_run() -> Callable[..., Run]:
    """`make_run`."""
    return make_run


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A headless Chromium; without it, tests are skipped loudly, or fail where it is required."""
    path = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if path is None:
        reason = "NO CHROMIUM ON THE PATH: the report's pages were NOT tested in a browser"
        if os.environ.get("STEADYGRAD_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()
