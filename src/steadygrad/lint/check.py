"""The contract of a check.

A check is a module `<id>_<name>.py` of `checks/` that holds `CHECK`. Its `find` reads one
module's facts and yields diagnostics; it yields nothing where it is not sure.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from steadygrad.lint.diagnostic import Diagnostic, Fix, Severity
from steadygrad.lint.module import Module

TRAINING = (
    r"clip_(?:grad|by|val)|clip_?norm|clipvalue|adaptive_grad_clip|global_norm|max_grad_norm|optax"
    r"|backward\(|gradient_clip"
)
"""A regular expression of words that a source which trains has."""


@dataclass(frozen=True)
class Check:
    """One mistake that can be seen in a source.

    Attributes:
        id: the id of the run-time rule that sees the same fault, or one of family ``SG7``
            where only the source shows it.
        title: a noun phrase.
        proves: what the source must show before the check speaks.
        assumes: what the check takes for true without seeing it.
        find: yields diagnostics; must not raise on any source that parses.
        fixable: whether ``--fix`` can mend at least some of what it finds.
        words: a regular expression; a source where no check's words are found is not parsed.
    """

    id: str
    title: str
    proves: str
    assumes: str
    find: Callable[[Module], Iterable[Diagnostic]] = field(repr=False)
    fixable: bool = False
    words: str = field(default=TRAINING, repr=False)


def at(
    node: ast.expr | ast.stmt, id: str, severity: Severity, message: str, fix: Fix | None = None
) -> Diagnostic:
    """A diagnostic at a node.

    Args:
        node: where.
        id: the check's id.
        severity: how grave it is.
        message: one sentence.
        fix: how to mend it.

    Returns:
        The diagnostic, without a path.
    """
    end_line = node.end_lineno or node.lineno
    end_column = (node.end_col_offset or node.col_offset) + 1
    return Diagnostic(
        id, severity, message, node.lineno, node.col_offset + 1, end_line, end_column, fix
    )
