"""`steadygrad explain`: one list and one page an id, for rules and checks alike."""

from __future__ import annotations

from steadygrad.lint import CHECKS, page
from steadygrad.rules import REGISTRY
from steadygrad.rules.show import explain as explain_rule


def explain(id: str | None = None) -> str:
    """The page of a rule or check, or one line for each.

    Args:
        id: its id, in any case; None for the list.

    Returns:
        The text, without a newline at its end.

    Raises:
        UsageError: there is no such rule or check.

    Example:
        >>> explain("sg701").splitlines()[0]
        '# SG701: the norm read at every step'
    """
    if id is None:
        titles = {check.id: check.title for check in CHECKS.values()}
        titles |= {rule.id: rule.title for rule in REGISTRY.values()}
        return "\n".join(f"{rule_id}  {titles[rule_id]}" for rule_id in sorted(titles))
    rule_id = id.upper()
    if rule_id in CHECKS and rule_id not in REGISTRY:
        return page(rule_id).rstrip()
    return explain_rule(id)
