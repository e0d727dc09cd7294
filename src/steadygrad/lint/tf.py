"""What checks ask of TensorFlow, Keras and optax sources."""

from __future__ import annotations

import ast

from steadygrad.lint.module import Module, dotted, tail

TF_CLIPS = frozenset({"clip_by_global_norm", "clip_by_norm", "clip_by_value"})
"""TensorFlow's functions that clip what they are given and return the result."""

KERAS_KEYWORDS = ("clipnorm", "global_clipnorm", "clipvalue")
"""The keywords by which a Keras optimizer clips."""


def clipped_name(module: Module, call: ast.Call) -> str:
    """The name of the gradients that a TensorFlow clip is given, also inside a comprehension."""
    value = call.args[0] if call.args else None
    if value is None:
        return ""
    name = dotted(value)
    for above in module.parents(call):
        if isinstance(above, ast.ListComp) and above.elt is call:
            generator = above.generators[0]
            if dotted(generator.target) == name:
                return dotted(generator.iter)
        if isinstance(above, ast.stmt):
            break
    return name


def applied_names(call: ast.Call) -> set[str]:
    """The names of the gradients that a call of `apply_gradients` applies."""
    if tail(call.func) not in ("apply_gradients", "apply") or not call.args:
        return set()
    pairs = call.args[0]
    if isinstance(pairs, ast.Call) and tail(pairs.func) in ("zip", "list") and pairs.args:
        if tail(pairs.func) == "list":
            return applied_names(ast.Call(call.func, pairs.args, []))
        return {dotted(pairs.args[0])} - {""}
    return {dotted(pairs)} - {""}


def is_optax(module: Module, call: ast.Call, *names: str) -> bool:
    """Whether a call is of one of optax's functions of these names."""
    full = module.full_name(call.func)
    return full.startswith("optax.") and tail(call.func) in names
