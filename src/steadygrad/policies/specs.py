"""Spec strings: how a policy is written on a command line or in a config.

A method, a chain of methods (`steadygrad.policies.method_specs`), or groups:
``{pattern: spec, pattern: spec}``, with a space behind each colon and comma of the group.
"""

from __future__ import annotations

from steadygrad.errors import SpecError
from steadygrad.policies.base import Policy
from steadygrad.policies.groups import Groups
from steadygrad.policies.method_specs import parse_methods


def parse(spec: str) -> Policy:
    """The policy that a spec string names.

    Args:
        spec: for example ``"none"``, ``"norm:1.0"``, ``"norm:1.0,p=inf"``, ``"value:0.5"``,
            ``"skip+norm:1.0"``, ``"{embed.*: none, *: norm:1.0}"``.

    Returns:
        A policy.

    Raises:
        SpecError: says which part was not understood, and lists what exists.

    Example:
        >>> parse("norm:0.5,p=inf")
        ClipNorm(max_norm=0.5, p=inf)
    """
    spec = spec.strip()
    if spec.startswith("{"):
        return _parse_groups(spec)
    return parse_methods(spec)


def _parse_groups(spec: str) -> Policy:
    if not spec.endswith("}"):
        raise SpecError(f"clip spec {spec!r} lacks its closing brace; {_GROUPS}")
    members = [part.partition(": ") for part in spec[1:-1].split(", ") if part.strip()]
    if not all(colon for _, colon, _ in members):
        raise SpecError(f"clip spec {spec!r}: each group is 'pattern: spec'; {_GROUPS}")
    return Groups(tuple((pattern.strip(), parse(inner)) for pattern, _, inner in members))


_GROUPS = "type for example '{embed.*: none, *: norm:1.0}', with the spaces"
