"""Checks of policy parameters beyond `base`'s: counts, shares, choices."""

from __future__ import annotations

from steadygrad.errors import SpecError
from steadygrad.policies.base import Policy


def require_count(policy: Policy, *fields: str, least: int = 1) -> None:
    """Refuse a policy whose named fields are not whole numbers of at least ``least``.

    Raises:
        SpecError: says which field, what it was, and what to type.
    """
    for field in fields:
        value = getattr(policy, field)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise SpecError(
                f"{type(policy).__name__}: {field} must be a whole number >= {least}, "
                f"got {value!r}; for example {field}={max(least, 100)}"
            )


def require_share(policy: Policy, *fields: str) -> None:
    """Refuse a policy whose named fields are not numbers in (0, 1).

    Raises:
        SpecError: says which field, what it was, and what to type.
    """
    for field in fields:
        value = getattr(policy, field)
        if not (isinstance(value, float) and 0 < value < 1):
            raise SpecError(
                f"{type(policy).__name__}: {field} must be between 0 and 1, got {value!r}; "
                f"for example {field}=0.9"
            )


def require_choice(policy: Policy, field: str, choices: tuple[str, ...]) -> None:
    """Refuse a policy whose named field is none of ``choices``.

    Raises:
        SpecError: lists them.
    """
    value = getattr(policy, field)
    if value not in choices:
        raise SpecError(
            f"{type(policy).__name__}: {field} must be one of {', '.join(choices)}, got {value!r}; "
            f"for example {field}={choices[0]}"
        )
