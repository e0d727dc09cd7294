"""The checks as a flake8 plugin: ``pip install steadygrad flake8`` is all it takes."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from steadygrad._version import __version__
from steadygrad.lint import CHECKS, lint_text


class Plugin:
    """What flake8 makes for every file.

    Args:
        tree: the file's syntax tree, by which flake8 knows what kind of plugin this is.
        lines: the file's lines.
    """

    name = "steadygrad"
    version = __version__

    def __init__(self, tree: ast.AST, lines: Sequence[str]) -> None:
        self._text = "".join(lines)

    def run(self) -> Iterator[tuple[int, int, str, type[Plugin]]]:
        """Line, column from 0, text and this class, as flake8 wants them."""
        for diagnostic in lint_text(self._text, CHECKS.values()):
            yield (
                diagnostic.line,
                diagnostic.column - 1,
                f"{diagnostic.id} {diagnostic.message}",
                Plugin,
            )
