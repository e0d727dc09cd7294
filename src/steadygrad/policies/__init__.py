"""Clipping methods: one file each, found by being here.

A new method is one new module of `methods/` with a frozen dataclass derived from
`steadygrad.policies.base.Policy`; its class becomes a public name of this
package and its `name` a word that specs understand.
"""

from __future__ import annotations

from typing import Any

from steadygrad.policies.base import Decision, Policy, State
from steadygrad.policies.chain import Chain
from steadygrad.policies.groups import Groups
from steadygrad.policies.registry import REGISTRY, examples
from steadygrad.policies.specs import parse

globals().update({cls.__name__: cls for cls in REGISTRY.values()})

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
