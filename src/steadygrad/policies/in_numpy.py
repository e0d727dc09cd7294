"""NumPy as an array namespace of policies.

Its type stubs spell every function as overloads that no protocol matches, so this says it once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

if TYPE_CHECKING:
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
