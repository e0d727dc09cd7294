"""SG410: gradients handed to the clip call in place of parameters."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from steadygrad.lint.check import Check, at
from steadygrad.lint.diagnostic import Diagnostic, Fix, Severity
from steadygrad.lint.events import clipped_expression
from steadygrad.lint.module import Module, dotted, tail
from steadygrad.lint.rewriting import rewrite

_TAKES_PARAMETERS = ("clip_grad_norm_", "clip_grad_value_", "clip_grad_norm")


def find(module: Module) -> Iterator[Diagnostic]:
    for call in module.calls:
        if tail(call.func) not in _TAKES_PARAMETERS:
            continue
        passed = clipped_expression(call)
        if passed is not None and _gradients(module, passed):
            yield at(
                passed,
                "SG410",
                Severity.ERROR,
                f"{tail(call.func)} is given gradients: it looks for the .grad of each, finds "
                "none, and does nothing. Give it the parameters.",
                _fix(module, passed),
            )


def _gradients(module: Module, node: ast.expr, hops: int = 1) -> bool:
    if isinstance(node, ast.Attribute) and node.attr == "grad":
        return True
    if isinstance(node, ast.ListComp | ast.GeneratorExp):
        return isinstance(node.elt, ast.Attribute) and node.elt.attr == "grad"
    if isinstance(node, ast.List | ast.Tuple) and node.elts:
        return all(_gradients(module, element, 0) for element in node.elts)
    if isinstance(node, ast.Call) and module.full_name(node.func) == "torch.autograd.grad":
        return True
    if isinstance(node, ast.Name) and hops:
        values = module.values(node.id, node)
        return bool(values) and all(_gradients(module, value, hops - 1) for value in values)
    return False


def _fix(module: Module, passed: ast.expr) -> Fix | None:
    says = "pass the parameters"
    if isinstance(passed, ast.Attribute) and dotted(passed.value):
        return rewrite(module, passed, dotted(passed.value), says)
    if isinstance(passed, ast.ListComp | ast.GeneratorExp) and len(passed.generators) == 1:
        generator = passed.generators[0]
        if isinstance(passed.elt, ast.Attribute) and dotted(passed.elt.value) == dotted(
            generator.target
        ):
            return rewrite(module, passed, module.source(generator.iter), says)
    return None


CHECK = Check(
    "SG410",
    "gradients passed for parameters",
    proves="the first argument is .grad, a list of .grad, or the result of torch.autograd.grad",
    assumes="the gradients have no .grad of their own",
    find=find,
    fixable=True,
)
