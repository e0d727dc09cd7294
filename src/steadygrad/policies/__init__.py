"""Clipping methods: one file each, found by being here.

A new method is one new module of `methods/` with a frozen dataclass derived from
`steadygrad.policies.base.Policy`; its class becomes a public name of this
package and its `name` a word that specs understand.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from steadygrad.policies import methods
from steadygrad.policies.base import Decision, Policy, State


def _discover() -> dict[str, type[Policy]]:
    found: dict[str, type[Policy]] = {}
    for module in sorted(m.name for m in pkgutil.iter_modules(methods.__path__)):
        members = vars(importlib.import_module(f"{methods.__name__}.{module}")).values()
        for member in members:
            if isinstance(member, type) and issubclass(member, Policy) and member.name:
                found[member.name] = member
    return found


REGISTRY: dict[str, type[Policy]] = _discover()
"""Spec word -> policy class."""


def examples() -> list[str]:
    """Specs of every method there is, as its class gives them.

    Example:
        >>> "norm:1.0" in examples()
        True
    """
    return [spec for method in REGISTRY.values() for spec in method.examples]


globals().update({cls.__name__: cls for cls in REGISTRY.values()})

from steadygrad.policies.chain import Chain  # noqa: E402  (needs the registry)
from steadygrad.policies.groups import Groups  # noqa: E402
from steadygrad.policies.specs import parse  # noqa: E402

__all__ = [
    "REGISTRY",
    "Chain",
    "Decision",
    "Groups",
    "Policy",
    "State",
    "examples",
    "parse",
    *sorted(cls.__name__ for cls in REGISTRY.values()),
]


def __getattr__(name: str) -> Any:  # tells type checkers that discovered classes are names here
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; there are: {__all__}")
