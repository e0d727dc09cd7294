"""The protocols of `steadygrad.typing` say what the libraries really offer."""

from __future__ import annotations

import numpy as np

from steadygrad.policies.base import NAMESPACE
from steadygrad.typing import Array, Namespace


def names_of(protocol: type) -> set[str]:
    return {name for name in vars(protocol) if not name.startswith("_")}


def test_the_namespace_protocol_lists_what_policies_may_use() -> None:
    assert names_of(Namespace) == set(NAMESPACE)


def test_numpy_has_every_name_of_the_protocols() -> None:
    assert [name for name in NAMESPACE if name != "concat" and not hasattr(np, name)] in (
        [],
        ["astype"],  # NumPy before 2.1
    )
    operators = {name for name in vars(Array) if name in vars(np.ndarray)}
    assert {"__add__", "__lt__", "__getitem__", "__invert__", "shape", "ndim"} <= operators
