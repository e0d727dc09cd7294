"""SG710: a generator of parameters that is empty by the time the clip reads it."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from steadygrad.lint.check import Check, at
from steadygrad.lint.diagnostic import Diagnostic, Fix, Severity
from steadygrad.lint.events import CLIPS, clipped_expression
from steadygrad.lint.module import Module, dotted, tail
from steadygrad.lint.rewriting import rewrite

_LAZY = ("filter", "map", "chain", "parameters", "iter")


def find(module: Module) -> Iterator[Diagnostic]:
    for call in module.calls:
        if tail(call.func) not in CLIPS:
            continue
        passed = clipped_expression(call)
        name = dotted(passed) if passed is not None else ""
        values = module.values(name, call) if name else []
        if len(values) != 1 or not _is_generator(module, values[0]):
            continue
        why = _used_up(module, name, values[0], call)
        if why:
            yield at(
                call,
                "SG710",
                Severity.ERROR,
                f"`{name}` is a generator, and {why}: the clip finds it empty and does nothing. "
                f"Keep a list: {name} = list({module.source(values[0])}).",
                _fix(module, values[0]),
            )


def _is_generator(module: Module, value: ast.expr) -> bool:
    if isinstance(value, ast.GeneratorExp):
        return True
    if not isinstance(value, ast.Call) or tail(value.func) not in _LAZY:
        return False
    method = isinstance(value.func, ast.Attribute)
    return tail(value.func) != "parameters" or (method and not value.args)


def _used_up(module: Module, name: str, value: ast.expr, call: ast.Call) -> str:
    """What reads the generator to its end before the clip does; empty where nothing must."""
    home = module.function(call)
    if "." in name or module.function(value) is not home:
        return ""
    for other in module.calls:
        if module.function(other) is not home or other is call:
            continue
        reads = any(dotted(a) == name for a in [*other.args, *(k.value for k in other.keywords)])
        if reads and value.lineno < other.lineno < call.lineno and _reads_all(other):
            return f"{ast.unparse(other.func)}() has read it already"
    around = module.loops(call)
    if around and not any(loop in module.loops(value) for loop in around[:1]):
        return "the first turn of the loop reads it to its end"
    return ""


def _reads_all(call: ast.Call) -> bool:
    """Whether a call is known to read an iterable to its end: optimizers, list, sum and kin."""
    name = tail(call.func)
    return name in CLIPS or name in ("list", "sum", "tuple", "set", "sorted") or name[:1].isupper()


def _fix(module: Module, value: ast.expr) -> Fix:
    return rewrite(module, value, f"list({module.source(value)})", "keep a list")


CHECK = Check(
    "SG710",
    "an exhausted generator of parameters",
    proves="a name is bound once, to a generator, and an optimizer, list() or the first turn of "
    "the loop reads it to its end before the clip does",
    assumes="parameters() is a generator, as nn.Module's is",
    find=find,
    fixable=True,
)
