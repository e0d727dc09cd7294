"""The contract of a rule, and how one is found.

A rule is a module `sgNNN_*.py` of this package that holds `RULE`. Its `check`
reads a `View` (one optimizer's steps) and yields findings; it yields nothing
where it has too little to go on. A rule that explains what others would only
restate names them in `supersedes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from steadygrad.rules.evidence.view import View
from steadygrad.rules.finding import Finding


@dataclass(frozen=True)
class Rule:
    """One diagnosis.

    Attributes:
        id: ``SG`` and three digits; the first is the family.
        title: the name of its page, a noun phrase.
        check: yields findings from a view; must not raise on any run.
        supersedes: ids dropped for an optimizer where this rule speaks at
            `warning` or `error`.
    """

    id: str
    title: str
    check: Callable[[View], Iterable[Finding]] = field(repr=False)
    supersedes: tuple[str, ...] = ()


def finding(
    view: View, rule_id: str, severity: str, confidence: float, title: str, **rest: object
) -> Finding:
    """A finding of one optimizer; several optimizers in a run are told apart in its title.

    Args:
        view: where it was found.
        rule_id: the rule.
        severity: ``error``, ``warning`` or ``info``.
        confidence: 0 to 1; clipped to that range.
        title: one sentence.
        rest: further fields of `Finding`; sequences become tuples.

    Returns:
        The finding.
    """
    if view.several:
        title = f"Optimizer {view.optimizer}: {title}"
    tuples: dict[str, Any] = {key: _freeze(value) for key, value in rest.items()}
    sure = min(max(float(confidence), 0.0), 1.0)
    return Finding(rule_id, title, severity, sure, optimizer=view.optimizer, **tuples)


def _freeze(value: object) -> tuple[object, ...]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, dict):
        return tuple((name, float(number)) for name, number in value.items())
    return tuple(
        int(v) if isinstance(v, np.generic) else v for v in cast("Iterable[object]", value)
    )
