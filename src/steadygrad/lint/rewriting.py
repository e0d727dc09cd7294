"""Fixes as replacements: moving, inserting and replacing without touching anything else."""

from __future__ import annotations

import ast

from steadygrad.lint.diagnostic import Edit, Fix
from steadygrad.lint.module import Module


def siblings(module: Module, one: ast.stmt, other: ast.stmt) -> bool:
    """Whether two statements stand in the same block."""
    parent = module.parent(one)
    if parent is None or parent is not module.parent(other):
        return False
    return any(one in block and other in block for block in blocks(parent))


def blocks(node: ast.AST) -> list[list[ast.stmt]]:
    """The lists of statements that a node holds."""
    named = (getattr(node, name, None) for name in ("body", "orelse", "finalbody"))
    return [block for block in named if isinstance(block, list)]


def move(module: Module, statement: ast.stmt, before: ast.stmt, says: str) -> Fix | None:
    """Move a statement in front of another one of its block.

    Args:
        module: the source.
        statement: what moves; it must have its lines to itself.
        before: what it comes to stand above.
        says: what is done, in the imperative.

    Returns:
        The fix; None where it can't be done safely.
    """
    if not (siblings(module, statement, before) and module.alone(statement)):
        return None
    start, end = module.lines(statement)
    place, _ = module.lines(before)
    text = module.text[start:end]
    if not text.endswith("\n"):
        text += "\n"
    return Fix(says, (Edit(place, place, text), Edit(start, end, "")))


def insert(module: Module, line: str, before: ast.stmt, says: str) -> Fix | None:
    """Insert a line in front of a statement, at its indentation.

    Args:
        module: the source.
        line: the new line, without indentation and newline.
        before: what it comes to stand above.
        says: what is done, in the imperative.

    Returns:
        The fix; None where the statement shares its line with others.
    """
    start, _ = module.span(before)
    first, _ = module.lines(before)
    indentation = module.text[first:start]
    if indentation.strip():
        return None
    return Fix(says, (Edit(first, first, f"{indentation}{line}\n"),))


def remove(module: Module, statement: ast.stmt, says: str) -> Fix | None:
    """Take a statement out; None where it shares its lines, or its block would be empty."""
    parent = module.parent(statement)
    if parent is None or not module.alone(statement):
        return None
    if any(block == [statement] for block in blocks(parent)):
        return None
    start, end = module.lines(statement)
    return Fix(says, (Edit(start, end, ""),))


def rewrite(module: Module, node: ast.expr, text: str, says: str) -> Fix:
    """Put other text in the place of an expression."""
    start, end = module.span(node)
    return Fix(says, (Edit(start, end, text),))


def apply(text: str, fixes: list[Fix]) -> tuple[str, int]:
    """Make the edits of fixes that do not touch each other.

    Args:
        text: the source.
        fixes: the fixes, the more important first.

    Returns:
        The new source, and how many fixes were made.
    """
    taken: list[Edit] = []
    made = 0
    for fix in fixes:
        if any(_touch(edit, other) for edit in fix.edits for other in taken):
            continue
        taken += fix.edits
        made += 1
    for edit in sorted(taken, key=lambda e: (e.start, e.end), reverse=True):
        text = text[: edit.start] + edit.text + text[edit.end :]
    return text, made


def _touch(one: Edit, other: Edit) -> bool:
    return one.start <= other.end and other.start <= one.end
