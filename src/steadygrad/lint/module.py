"""Module: one parsed source, with what checks ask of it again and again.

The standard library's `ast` gives exact positions, and fixes are replacements at these
positions: what is not replaced keeps its formatting, and no second parser is needed.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Sequence
from typing import TypeVar

Function = ast.FunctionDef | ast.AsyncFunctionDef
Scope = ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
Loop = ast.For | ast.AsyncFor | ast.While

_LOOPS = (ast.For, ast.AsyncFor, ast.While)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

Node = TypeVar("Node", bound=ast.AST)


class Module:
    """One source file, parsed.

    Args:
        text: the source.
        tree: its syntax tree.

    Attributes:
        text: the source.
        tree: its syntax tree.
        imported: local name -> what it stands for, e.g. ``{"F": "torch.nn.functional"}``.
        calls: every call, in the order of the source.

    Example:
        >>> text = "import torch.nn.functional as F\\nF.relu(x)"
        >>> module = Module.parse(text)
        >>> module.full_name(module.calls[0].func)
        'torch.nn.functional.relu'
    """

    def __init__(self, text: str, tree: ast.Module) -> None:
        self.text = text
        self.tree = tree
        self.imported: dict[str, str] = {}
        self.calls: list[ast.Call] = []
        self._nodes: list[ast.AST] = []
        self._parents: dict[ast.AST, ast.AST] = {}
        self._read()

    @classmethod
    def parse(cls, text: str) -> Module:
        """Read a source.

        Args:
            text: the source.

        Returns:
            The module.

        Raises:
            SyntaxError: the text is no Python.
        """
        return cls(text, ast.parse(text))

    def _read(self) -> None:
        waiting: list[ast.AST] = [self.tree]
        while waiting:
            node = waiting.pop()
            self._nodes.append(node)
            children = _children(node)
            for child in children:
                self._parents[child] = node
            waiting.extend(reversed(children))
            if isinstance(node, ast.Call):
                self.calls.append(node)
            elif isinstance(node, ast.Import):
                self._import(node)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    self.imported[alias.asname or alias.name] = f"{node.module}.{alias.name}"

    def _import(self, node: ast.Import) -> None:
        for alias in node.names:
            if alias.asname:
                self.imported[alias.asname] = alias.name
            else:
                root = alias.name.partition(".")[0]
                self.imported[root] = root

    def nodes(self, kind: type[Node]) -> Iterator[Node]:
        """Every node of a kind, in the order of the source."""
        return (node for node in self._nodes if isinstance(node, kind))

    def parent(self, node: ast.AST) -> ast.AST | None:
        """The node that holds this one; None for the module."""
        return self._parents.get(node)

    def parents(self, node: ast.AST) -> Iterator[ast.AST]:
        """The nodes around this one, the nearest first."""
        above = self._parents.get(node)
        while above is not None:
            yield above
            above = self._parents.get(above)

    def scope(self, node: ast.AST) -> Scope:
        """The function, class or module that a node stands in."""
        scopes = (ast.Module, ast.ClassDef, *_FUNCTIONS)
        return next((n for n in self.parents(node) if isinstance(n, scopes)), self.tree)

    def function(self, node: ast.AST) -> ast.Module | Function:
        """The function that a node stands in, or the module."""
        scopes = (ast.Module, *_FUNCTIONS)
        return next((n for n in self.parents(node) if isinstance(n, scopes)), self.tree)

    def class_of(self, node: ast.AST) -> ast.ClassDef | None:
        """The class that a node stands in, at any depth."""
        return next((n for n in self.parents(node) if isinstance(n, ast.ClassDef)), None)

    def loops(self, node: ast.AST) -> list[Loop]:
        """The loops around a node within its function, the innermost first."""
        loops: list[Loop] = []
        for above in self.parents(node):
            if isinstance(above, _FUNCTIONS):
                break
            if isinstance(above, _LOOPS):
                loops.append(above)
        return loops

    def statement(self, node: ast.AST) -> ast.stmt | None:
        """The statement that a node belongs to."""
        if isinstance(node, ast.stmt):
            return node
        return next((n for n in self.parents(node) if isinstance(n, ast.stmt)), None)

    def full_name(self, node: ast.expr) -> str:
        """A dotted name with its first part replaced by what was imported under it.

        Args:
            node: a name or an attribute.

        Returns:
            For example ``torch.nn.utils.clip_grad_norm_``; empty for anything else.
        """
        name = dotted(node)
        root, dot, rest = name.partition(".")
        return self.imported.get(root, root) + dot + rest

    def imports(self, library: str) -> bool:
        """Whether the source imports a library or a part of it."""
        return any(
            name == library or name.startswith(f"{library}.") for name in self.imported.values()
        )

    @functools.cached_property
    def functions(self) -> dict[str, list[Function]]:
        """Name -> functions and methods of that name."""
        named: dict[str, list[Function]] = {}
        for node in self._nodes:
            if isinstance(node, _FUNCTIONS):
                named.setdefault(node.name, []).append(node)
        return named

    @functools.cached_property
    def assignments(self) -> dict[str, list[ast.Assign | ast.AnnAssign]]:
        """Dotted name -> the assignments to it alone, in the order of the source."""
        named: dict[str, list[ast.Assign | ast.AnnAssign]] = {}
        for node in self._nodes:
            if isinstance(node, ast.Assign):
                targets: Sequence[ast.expr] = node.targets
            elif isinstance(node, ast.AnnAssign) and node.value is not None:
                targets = [node.target]
            else:
                continue
            for target in targets:
                if name := dotted(target):
                    named.setdefault(name, []).append(node)
        return named

    def values(self, name: str, near: ast.AST) -> list[ast.expr]:
        """What is assigned to a name, as seen from a node.

        Args:
            name: a dotted name.
            near: where it is used: assignments in the same function count, else those of the
                module; for ``self.x`` those of the same class.

        Returns:
            The values, in the order of the source.
        """
        nodes = self.assignments.get(name, [])
        if "." in name:
            home = self.class_of(near)
            mine = [n for n in nodes if self.class_of(n) is home]
        else:
            function = self.function(near)
            mine = [n for n in nodes if self.function(n) is function]
            mine = mine or [n for n in nodes if isinstance(self.function(n), ast.Module)]
        return [node.value for node in mine if node.value is not None]

    @functools.cached_property
    def _line_starts(self) -> list[int]:
        starts = [0]
        for line in self.text.splitlines(keepends=True):
            starts.append(starts[-1] + len(line))
        return starts

    def offset(self, line: int, column: int) -> int:
        """Where a position of the tree stands in the text.

        Args:
            line: line, from 1.
            column: column in UTF-8 bytes from 0, as `ast` counts.

        Returns:
            The offset in characters.
        """
        start = self._line_starts[line - 1]
        end = self._line_starts[line] if line < len(self._line_starts) else len(self.text)
        bytes_before = self.text[start:end].encode()[:column]
        return start + len(bytes_before.decode(errors="ignore"))

    def span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        """Start and end of a node, in characters of the text."""
        end_line, end_column = node.end_lineno or node.lineno, node.end_col_offset or 0
        return self.offset(node.lineno, node.col_offset), self.offset(end_line, end_column)

    def source(self, node: ast.expr | ast.stmt) -> str:
        """The text of a node."""
        start, end = self.span(node)
        return self.text[start:end]

    def lines(self, node: ast.stmt) -> tuple[int, int]:
        """Start of a statement's first line and end of its last, newline included."""
        end = (node.end_lineno or node.lineno) - 1
        last = self._line_starts[end + 1] if end + 1 < len(self._line_starts) else len(self.text)
        return self._line_starts[node.lineno - 1], last

    def alone(self, node: ast.stmt) -> bool:
        """Whether nothing but a comment shares the statement's lines."""
        start, end = self.span(node)
        first, last = self.lines(node)
        behind = self.text[end:last].strip()
        return not self.text[first:start].strip() and (not behind or behind.startswith("#"))


def _children(node: ast.AST) -> list[ast.AST]:
    """The nodes right below one; `ast.iter_child_nodes` takes longer, and most time goes here."""
    children: list[ast.AST] = []
    for name in node._fields:
        value = getattr(node, name, None)
        if isinstance(value, list):
            children += [item for item in value if isinstance(item, ast.AST)]
        elif isinstance(value, ast.AST):
            children.append(value)
    return children


def dotted(node: ast.expr) -> str:
    """``a.b.c`` of a name or attribute; empty for anything else.

    Example:
        >>> dotted(ast.parse("a.b.c", mode="eval").body)
        'a.b.c'
    """
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    return ".".join([node.id, *reversed(parts)])


def tail(node: ast.expr) -> str:
    """The last part of a name or attribute, whatever stands before it.

    Example:
        >>> tail(ast.parse("models[0].parameters", mode="eval").body)
        'parameters'
    """
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def argument(call: ast.Call, position: int, name: str) -> ast.expr | None:
    """An argument given by position or by name.

    Args:
        call: the call.
        position: its place, from 0; -1 where it has none.
        name: its keyword.

    Returns:
        The expression; None where it is not given, or hidden behind a star.
    """
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value
    before = call.args[: position + 1]
    if 0 <= position < len(call.args) and not any(isinstance(a, ast.Starred) for a in before):
        return call.args[position]
    return None


def number(node: ast.expr | None) -> float | None:
    """The value of a number that stands in the source; infinities by their names too.

    Example:
        >>> number(ast.parse("-1e3", mode="eval").body), number(ast.parse("x", mode="eval").body)
        (-1000.0, None)
    """
    if isinstance(node, ast.Constant):
        plain = isinstance(node.value, int | float) and not isinstance(node.value, bool)
        return float(node.value) if plain else None  # type: ignore[arg-type]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = number(node.operand)
        return None if value is None else -value
    if isinstance(node, ast.Attribute) and node.attr in ("inf", "Inf", "infty"):
        return float("inf")
    if isinstance(node, ast.Call) and tail(node.func) == "float" and len(node.args) == 1:
        text = node.args[0]
        if isinstance(text, ast.Constant) and isinstance(text.value, str):
            try:
                return float(text.value)
            except ValueError:
                return None
    return None
