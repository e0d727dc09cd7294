"""Code of ours laid into a function of torch, which stays the function that it was.

A wrapper around a function shows: as a frame in every traceback that passes through it, as a level
in warnings, as another object than the one that was imported before, and as Python that
`torch.compile` traces. Here the function's own code is compiled again from its source with a
call at its start and at its returns, every line and column where it was. `torch.compile` sees
the function without the calls: they stand behind a question that it answers for itself.
Where the source is not at hand, or is not what runs, `inlay` says so, and a wrapper has to do.
"""

from __future__ import annotations
import __future__

import ast
import inspect
import types
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

Arguments: TypeAlias = tuple[Any, ...]
"""What a function of torch is called with, in the order of its signature, whose types they have."""

Begin: TypeAlias = "Callable[[Arguments], Visit | None]"
"""Told of a call by its arguments, in the order of the signature; None takes no part in it."""


class Visit:
    """One call of an observed function.

    Args:
        arguments: with which it goes on, in the order of its signature.

    Attributes:
        replaced: the function does nothing, and returns `result` at once.
        result: what it returns then.
    """

    replaced = False
    result: object = None

    def __init__(self, arguments: Arguments) -> None:
        self.arguments = arguments

    def returns(self, result: object) -> object:
        """The function is about to return this; gives what it returns."""
        return result

    def ends(self) -> None:
        """The function is over, by an exception too where it was inlaid as guarded."""


_BEGIN = "steadygrad begins"
_TEMPLATE = f"""
if torch.compiler.is_dynamo_compiling():
    _steadygrad = None
else:
    _steadygrad = {_BEGIN!r}
    _steadygrad = _steadygrad(ARGUMENTS)
    if _steadygrad is not None:
        if _steadygrad.replaced:
            return _steadygrad.result
        ARGUMENTS = _steadygrad.arguments
"""
_RETURN = """
_steadygrad_result = None
return _steadygrad_result if _steadygrad is None else _steadygrad.returns(_steadygrad_result)
"""
_END = "_steadygrad is None or _steadygrad.ends()"
_FUTURES = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)


def inlay(function: types.FunctionType, begin: Begin, guarded: bool) -> types.CodeType | None:
    """Code for a function that tells of its calls.

    Args:
        function: a plain function of torch.
        begin: told of every call.
        guarded: `Visit.ends` is called where the function raises, too. Code that may be compiled
            cannot be guarded: `torch.compile` goes on in no frame that stands in a ``try``.

    Returns:
        What to put in the place of ``function.__code__``; None where that is not possible.

    Example:
        >>> import textwrap
        >>> begun = []
        >>> code = inlay(textwrap.dedent, begun.append, False)
        >>> code is None  # a function that cannot ask torch whether it is being compiled
        True
    """
    if function.__closure__ is not None or function.__globals__.get("torch") is not torch:
        return None
    try:
        lines, first = inspect.getsourcelines(function)
        name = function.__code__.co_name
        tree = _parsed(lines, first, _imported(function))
        definition = next(
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and node.name == name
        )
        if not _same(_code_of(tree, function), function.__code__):
            return None
        _lay_in(definition, guarded)
        code = _code_of(tree, function)
    except (OSError, TypeError, SyntaxError, StopIteration):
        return None
    constants = (begin if constant == _BEGIN else constant for constant in code.co_consts)
    return code.replace(co_consts=tuple(constants))


def _parsed(lines: list[str], first: int, imported: list[str]) -> ast.Module:
    """The function's source with every line and column where the file has it."""
    # compilers call what a module holds otherwise where they see its import
    imports = f"import {', '.join(imported)}" if imported else ""
    inside = "if 1:\n" if lines[0][0] in " \t" else ""
    return ast.parse(imports + "\n" * (first - 1 - bool(inside)) + inside + "".join(lines))


def _imported(function: types.FunctionType) -> list[str]:
    """The global names in a function that its module has imported."""
    module, scope = function.__module__, function.__globals__
    return [
        name
        for name in function.__code__.co_names
        if name in scope and getattr(scope[name], "__module__", "") != module
    ]


def _code_of(tree: ast.Module, function: types.FunctionType) -> types.CodeType:
    """Compile, and take the function's code out of its module's."""
    old = function.__code__
    flags = old.co_flags & _FUTURES
    module = compile(tree, old.co_filename, "exec", flags=flags, dont_inherit=True)
    codes = (constant for constant in module.co_consts if isinstance(constant, types.CodeType))
    code = next(code for code in codes if code.co_name == old.co_name)
    return code.replace(co_qualname=old.co_qualname) if hasattr(code, "co_qualname") else code


def _same(compiled: types.CodeType, running: types.CodeType) -> bool:
    """Whether a source is that of the code which runs."""
    parts = ("co_code", "co_names", "co_varnames", "co_firstlineno")
    return all(getattr(compiled, part) == getattr(running, part) for part in parts)


def _lay_in(definition: ast.FunctionDef, guarded: bool) -> None:
    """Put the calls into the function."""
    parameters = definition.args
    names = [each.arg for each in (*parameters.posonlyargs, *parameters.args)]
    names += [parameters.vararg.arg] if parameters.vararg else []
    names += [each.arg for each in parameters.kwonlyargs]
    names += [parameters.kwarg.arg] if parameters.kwarg else []
    has_text = ast.get_docstring(definition, clean=False) is not None
    text, body = definition.body[:has_text], definition.body[has_text:]
    first, last = body[0], body[-1]
    start = _snippet(_TEMPLATE.replace("ARGUMENTS", f"({', '.join(names)},)"), first)
    over = ast.copy_location(ast.Return(value=None), last)
    body = _Returns().of_all([*body, over])
    if guarded:
        attempt = ast.Try(body=body, handlers=[], orelse=[], finalbody=_snippet(_END, last))
        body = [ast.copy_location(attempt, first)]
    definition.body = [*text, *start, *body]


class _Returns(ast.NodeTransformer):
    """Has what a function returns pass through the visit; functions inside it stay as they are."""

    def of_all(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        """The statements of a body."""
        body = ast.Module(body=statements, type_ignores=[])
        self.generic_visit(body)
        return body.body

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return node

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        return node

    def visit_Return(self, node: ast.Return) -> list[ast.stmt]:
        keep, give = _snippet(_RETURN, node)
        assert isinstance(keep, ast.Assign)
        keep.value = node.value or ast.copy_location(ast.Constant(value=None), node)
        return [keep, give]


def _snippet(code: str, place: ast.stmt) -> list[ast.stmt]:
    """Statements of ours, all in the place of one of torch's."""
    statements = ast.parse(code).body
    for statement in statements:
        for node in ast.walk(statement):
            ast.copy_location(node, place)
    return statements
