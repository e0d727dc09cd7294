"""The random generators of a process: torch's on every device, NumPy's and Python's."""

from __future__ import annotations

import random
from typing import TypedDict

import numpy as np
import torch


class Generators(TypedDict):
    """States of all generators, as plain values that any checkpoint holds."""

    torch: torch.Tensor
    cuda: list[torch.Tensor]
    numpy: tuple[str, list[int], int, int, float]
    python: tuple[int, tuple[int, ...], float | None]


def generators() -> Generators:
    """The states now; draws from none."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, following = random.getstate()
    used = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if used else [],
        "numpy": (
            str(name),
            np.asarray(keys).tolist(),
            int(position),
            int(has_gauss),
            float(gauss),
        ),
        "python": (version, words, following),
    }


def set_generators(states: Generators) -> None:
    """Put them back."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
    name, keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), position, has_gauss, gauss))
    version, words, following = states["python"]
    random.setstate((version, tuple(words), following))
