"""The random generators of a process: torch's on every device, NumPy's and Python's."""

from __future__ import annotations

import random
from typing import TypedDict

import numpy as np
import torch


class Generators(TypedDict):
    """States of all generators, as plain values that any checkpoint holds.

    NumPy's is None where a script has put another kind of generator in the place of its own.
    """

    torch: torch.Tensor
    cuda: list[torch.Tensor]
    numpy: tuple[str, list[int], int, int, float] | None
    python: tuple[int, tuple[int, ...], float | None]


def generators() -> Generators:
    """The states now; draws from none."""
    version, words, following = random.getstate()
    used = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if used else [],
        "numpy": _of_numpy(),
        "python": (version, words, following),
    }


def _of_numpy() -> tuple[str, list[int], int, int, float] | None:
    state = np.random.get_state(legacy=False)
    if not isinstance(state, dict) or state["bit_generator"] != "MT19937":
        return None
    inner = state["state"]
    keys, position = np.asarray(inner["key"]).tolist(), int(inner["pos"])
    return "MT19937", keys, position, int(state["has_gauss"]), float(state["gauss"])


def set_generators(states: Generators) -> None:
    """Put them back."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
    if states["numpy"] is not None:
        name, keys, position, has_gauss, gauss = states["numpy"]
        np.random.set_state((name, np.array(keys, np.uint32), position, has_gauss, gauss))
    version, words, following = states["python"]
    random.setstate((version, tuple(words), following))
