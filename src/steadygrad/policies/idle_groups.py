"""Clip groups that govern nothing: told, since they would clip nothing without a word."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from steadygrad.policies.base import Policy
from steadygrad.policies.groups import Groups, matches
from steadygrad.policies.methods.none import NoClip


def idle_patterns(policy: Policy, names: Iterable[str]) -> list[str]:
    """A sentence for each pattern that matches none of these names.

    Args:
        policy: its groups are meant.
        names: every name that the patterns may be about.

    Example:
        >>> (sentence,) = idle_patterns(Groups.of({"haed.*": "norm:1.0"}), ["head.bias"])
        >>> sentence.partition("; ")[2]
        "names are such as 'head.bias'"
    """
    distinct = list(dict.fromkeys(names))
    members = policy.members if isinstance(policy, Groups) else ()
    patterns = [pattern for pattern, _ in members if not pattern.startswith("@")]
    return [
        f"the clip pattern {pattern!r} matches none of the {len(distinct)} parameters, so it clips "
        f"nothing; {_nearest(pattern, distinct)}"
        for pattern in patterns
        if not any(matches(name, pattern) for name in distinct)
    ]


def idle_classes(asked: Policy, policy: Policy, class_name: str) -> list[str]:
    """A sentence where all groups are for optimizers of other classes.

    Args:
        asked: what was asked for.
        policy: what of it is for this optimizer.
        class_name: of the optimizer.
    """
    if not (isinstance(asked, Groups) and isinstance(policy, NoClip)):
        return []
    patterns = [pattern for pattern, _ in asked.members]
    if any(fnmatchcase(class_name, pattern.removeprefix("@")) for pattern in patterns):
        return []
    return [
        f"none of the clip groups {', '.join(patterns)} is for a {class_name}, so nothing is "
        f"clipped; type for example '@{class_name}', or '*' for what is left"
    ]


def _nearest(pattern: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(pattern.replace("*", ""), names, n=2, cutoff=0.3) or names[:2]
    return f"names are such as {', '.join(map(repr, near))}"
