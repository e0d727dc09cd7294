"""What lint sees in the script that was run: recorded, and said only where the run confirms it."""

from __future__ import annotations

import os

from steadygrad.launch.plan import Plan


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

    try:
        diagnostics = lint(plan.target).diagnostics
    except Exception:  # a source that our checks cannot follow must not cost the record its end
        return []
    return [{"id": d.id, "path": plan.target, "line": d.line} for d in diagnostics]
