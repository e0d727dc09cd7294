"""What lint sees in the script that was run: recorded, and said only where the run confirms it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from steadygrad.launch.plan import Plan

if TYPE_CHECKING:
    from steadygrad.lint.diagnostic import Diagnostic


def places(plan: Plan) -> list[dict[str, str | int]]:
    """The mistakes that can be read off the script's own file.

    Args:
        plan: what was run.

    Returns:
        One ``{"id", "path", "line"}`` each; empty for a module, and for a file that cannot be
        read any more.
    """
    if plan.as_module or not os.path.isfile(plan.target):
        return []
    from steadygrad.lint import lint

    return _noted(lambda: lint(plan.target).diagnostics, plan.target)


def places_in_cell(text: str, cell: str) -> list[dict[str, str | int]]:
    """The same for a notebook's cell.

    Args:
        text: its Python code.
        cell: its name.

    Example:
        >>> places_in_cell("clip_grad_norm_([p.grad for p in net.parameters()], 1.0)", "Cell In[2]")
        [{'id': 'SG410', 'path': 'Cell In[2]', 'line': 1}]
    """
    from steadygrad.lint import selected
    from steadygrad.lint.linting import lint_text

    return _noted(lambda: lint_text(text, selected()), cell)


def _noted(lint: Callable[[], Iterable[Diagnostic]], path: str) -> list[dict[str, str | int]]:
    try:
        return [{"id": d.id, "path": path, "line": d.line} for d in lint()]
    except Exception:  # a source that our checks cannot follow must not cost the record its end
        return []
