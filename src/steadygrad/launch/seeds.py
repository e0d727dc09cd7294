"""`--seed`: give a script other random numbers without touching it.

Generators that the script does not seed are seeded; a seed that it sets itself is
shifted by a large multiple of ours, so that seed 0 is the script as written where it
seeds everything. Generators that a script makes of its own (`numpy.random.default_rng`,
`torch.Generator`) are left alone: they usually make the data set or its split, which a
comparison wants fixed. JAX has no hidden generator; a JAX script's keys stay its own.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from types import ModuleType
from typing import Any

from steadygrad.launch.imports import watch

STRIDE = 1_000_003
LIMIT = 2**32
"""NumPy's legacy generator takes no larger seed."""


def shifted(seed: int, number: int) -> int:
    """A script's own seed, moved for run ``number``; itself for 0.

    Example:
        >>> shifted(42, 0), shifted(42, 2)
        (42, 2000048)
    """
    return (seed + STRIDE * number) % LIMIT if number else seed


def sow(number: int) -> None:
    """Seed the global generators now and as their libraries are imported.

    Args:
        number: 0 or more; the same number gives the same random numbers.
    """
    _take_over(random, "seed", number)
    watch(
        {
            "numpy": lambda module: _take_over(module.random, "seed", number),
            "torch": lambda module: _torch(module, number),
            "tensorflow": lambda module: _take_over(module.random, "set_seed", number),
            "keras": lambda module: _keras(module, number),
        }
    )


def _take_over(module: object, name: str, number: int) -> None:
    """Seed by ``module.name``, and shift what the script seeds by it later."""
    original: Callable[..., Any] = getattr(module, name)
    original(shifted(0, number))

    @functools.wraps(original)
    def seed(*values: object, **named: object) -> Any:
        moved = [shifted(v, number) if type(v) is int else v for v in values]
        shifted_named = {k: shifted(v, number) if type(v) is int else v for k, v in named.items()}
        return original(*moved, **shifted_named)

    setattr(module, name, seed)


def _torch(module: ModuleType, number: int) -> None:
    _take_over(module, "manual_seed", number)
    module.random.manual_seed = module.manual_seed
    _shift_only(module.cuda, "manual_seed", number)
    _shift_only(module.cuda, "manual_seed_all", number)


def _shift_only(module: object, name: str, number: int) -> None:
    """Shift what the script seeds; torch.manual_seed has seeded these already."""
    original = getattr(module, name)
    setattr(module, name, functools.wraps(original)(lambda seed: original(shifted(seed, number))))


def _keras(module: ModuleType, number: int) -> None:
    """Keras seeds Python, NumPy and the backend by functions that are taken over already."""
    module.utils.set_random_seed(0)
