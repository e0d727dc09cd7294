"""Name patterns of clip groups, held against the parameters of one optimizer.

``@group:muon`` becomes the names of the parameters in those ``param_groups``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from steadygrad.errors import SpecError
from steadygrad.policies import Policy
from steadygrad.policies.groups import BY_GROUP, Groups, escaped

OF_A_GROUP = ("name", "group_name")
"""Keys of a parameter group whose value is what it is called."""


def by_parameter_groups(
    policy: Policy, optimizer: torch.optim.Optimizer, names: Sequence[str]
) -> Policy:
    """The policy with every ``@group:`` replaced by the names of the parameters in that group.

    Args:
        policy: of the optimizer.
        optimizer: its ``param_groups`` are meant.
        names: of the parameters, in the order of the groups.

    Returns:
        The policy; parameters that are added later are in none of those groups.

    Raises:
        SpecError: the optimizer has no such group; says which it has.

    Example:
        >>> from steadygrad.policies import parse
        >>> weights = [torch.zeros(1), torch.zeros(1)]
        >>> groups = [{"params": weights[:1], "use_muon": True}, {"params": weights[1:]}]
        >>> policy = parse("{@group:muon: none, *: norm:1.0}")
        >>> resolved = by_parameter_groups(policy, torch.optim.SGD(groups), ["a", "b"])
        >>> resolved.for_tensor("a"), resolved.for_tensor("b")
        (NoClip(), ClipNorm(max_norm=1.0, p=2.0))
    """
    if not isinstance(policy, Groups) or not any(k.startswith(BY_GROUP) for k, _ in policy.members):
        return policy
    members = [
        (_names_in(pattern, optimizer, names) if pattern.startswith(BY_GROUP) else pattern, member)
        for pattern, member in policy.members
    ]
    return replace(policy, members=tuple(members))


def _names_in(pattern: str, optimizer: torch.optim.Optimizer, names: Sequence[str]) -> str:
    wanted = pattern.removeprefix(BY_GROUP)
    inside: list[str] = []
    place = 0
    for group in optimizer.param_groups:
        size = len(group["params"])
        if _is_called(group, wanted):
            inside += names[place : place + size]
        place += size
    if not inside:
        raise SpecError(
            f"clip group {pattern!r}: no parameter group of this {type(optimizer).__name__} is "
            f"called {wanted!r} or sets {wanted!r} or 'use_{wanted}'; they have the keys "
            f"{sorted({key for group in optimizer.param_groups for key in group} - {'params'})}. "
            f"Type for example {{'params': [...], 'name': {wanted!r}}} where the optimizer is made"
        )
    return "|".join(map(escaped, inside))


def _is_called(group: dict[str, object], wanted: str) -> bool:
    named = any(group.get(key) == wanted for key in OF_A_GROUP)
    return named or any(group.get(key) is True for key in (wanted, f"use_{wanted}"))
