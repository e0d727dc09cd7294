"""The methods, found by being in `methods/`."""

from __future__ import annotations

import importlib
import pkgutil

from steadygrad.policies import methods
from steadygrad.policies.base import Policy


def _discover() -> dict[str, type[Policy]]:
    by_name: dict[str, type[Policy]] = {}
    for module in sorted(m.name for m in pkgutil.iter_modules(methods.__path__)):
        members = vars(importlib.import_module(f"{methods.__name__}.{module}")).values()
        for member in members:
            if isinstance(member, type) and issubclass(member, Policy) and member.name:
                by_name[member.name] = member
    return by_name


REGISTRY: dict[str, type[Policy]] = _discover()
"""Spec word -> policy class."""


def examples() -> list[str]:
    """Specs of every method there is, as its class gives them.

    Example:
        >>> "norm:1.0" in examples()
        True
    """
    return [spec for method in REGISTRY.values() for spec in method.examples]
