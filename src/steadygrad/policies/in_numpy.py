"""NumPy as an array namespace of policies.

Its type stubs spell every function as overloads that no protocol matches, so this says it once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

if TYPE_CHECKING:
    from steadygrad.typing import Namespace


NUMPY = cast("Namespace", np)
"""NumPy itself."""
