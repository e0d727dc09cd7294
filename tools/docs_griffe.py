"""How docstrings become pages: ``Example:`` is a section of code, what is internal stays out."""

from __future__ import annotations

import ast
import re
from typing import Any

import griffe

_HEADING = re.compile(r"^(\s*)Example:[ ]*$", re.MULTILINE)


class Examples(griffe.Extension):
    """Calls the section by the name that the parser knows: the plural."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = _HEADING.sub(r"\1Examples:", obj.docstring.value)


class PublicMembers(griffe.Extension):
    """Leaves out the methods that are marked as internal."""

    def on_class_members(self, *, node: ast.AST, cls: griffe.Class, **kwargs: Any) -> None:
        assert isinstance(node, ast.ClassDef)
        for member in node.body:
            if isinstance(member, ast.FunctionDef) and is_internal(member):
                cls.members.pop(member.name, None)


def is_internal(function: ast.FunctionDef) -> bool:
    """Whether a function carries the mark of `steadygrad.typing.internal`."""
    return any(ast.unparse(mark) == "internal" for mark in function.decorator_list)
