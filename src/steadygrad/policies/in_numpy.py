"""NumPy as an array namespace of policies.

Its type stubs spell every function as overloads that no protocol matches, so this says it once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from steadygrad.typing import Array, Namespace


NUMPY = cast("Namespace", np)
"""NumPy itself."""


def scalar(value: float) -> Array:
    """A number as a float64 that a policy may compute with.

    Example:
        >>> scalar(2.0) + 1
        np.float64(3.0)
    """
    return cast("Array", np.float64(value))


def concat(xp: Namespace, arrays: Sequence[Array], axis: int = 0) -> Array:
    """Join arrays along an axis that they have; NumPy before 2.0 has another name for it.

    Args:
        xp: their namespace.
        arrays: one or more, of one shape but for that axis.
        axis: its number.

    Returns:
        One array.

    Example:
        >>> concat(NUMPY, [np.ones(1), np.zeros(2)])
        array([1., 0., 0.])
    """
    join = next(getattr(xp, name) for name in ("concat", "concatenate") if hasattr(xp, name))
    return cast("Array", join(arrays, axis=axis))
