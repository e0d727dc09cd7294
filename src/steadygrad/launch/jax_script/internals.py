"""Every private name of JAX and optax that observing uses: a release of theirs breaks this file.

It loads `jax` alone: a script that does without optax must not be made to load it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, cast

import jax
import numpy as np
from jax import lax
from numpy.typing import ArrayLike


class JaxTrace(NamedTuple):
    """A trace, and those it is inside of, innermost first; empty where code runs eagerly."""

    levels: tuple[object, ...]

    def reaches(self, value: object) -> bool:
        """Whether a value may be used here; a tracer of a trace that is over may not."""
        of = getattr(value, "_trace", None)
        return of is None or any(of is level for level in self.levels)


def current_trace() -> JaxTrace:
    """Where the code that runs now is being traced."""
    from jax._src import core

    context = getattr(core, "trace_ctx", None)
    level, levels = getattr(context, "trace", None), []
    while level is not None:
        levels.append(level)
        level = getattr(level, "parent_trace", None)
    return JaxTrace(tuple(levels))


def axis_sizes() -> dict[str, int]:
    """The mesh and map axes that the code which runs now is inside of."""
    from jax._src import core

    environment = core.get_axis_env()
    return {name: size for name, size in environment.axis_sizes.items() if isinstance(name, str)}


def is_traced(value: object) -> bool:
    """Whether a value is known only when the traced code runs."""
    return isinstance(value, jax.core.Tracer)


def is_batched(value: object) -> bool:
    """Whether a value stands for many, inside `jax.vmap`."""
    return type(value).__name__ == "BatchTracer"


def is_differentiated(value: object) -> bool:
    """Whether a derivative is being taken of the code that made a value."""
    return type(value).__name__ in ("JVPTracer", "LinearizeTracer", "JaxprTracer")


PRODUCTS = ("dot_general", "conv_general_dilated")
"""What a network's layers are made of: before the last of them is no part of the loss proper."""


def is_product(value: object) -> bool:
    """Whether a traced matrix is a product of two, over more than one element each.

    XLA makes such a one by itself, and fuses it with none of several that use it.
    """
    made = getattr(value, "parent", None)
    while made is not None and str(made.primitive) in ("transpose", "stop_gradient"):
        made = getattr(made.in_tracers[0], "parent", None)
    if made is None or str(made.primitive) != "dot_general":
        return False
    (summed, _), (batch, _) = made.params["dimension_numbers"]
    lengths = [made.in_tracers[0].shape[axis] for axis in summed]
    return not batch and min([*lengths, *getattr(value, "shape", ())]) > 1


def holds_root(value: object) -> bool:
    """Whether a traced loss is made from a square root that comes after the network's layers."""
    waiting, seen = [value], set()
    while waiting:
        made = getattr(waiting.pop(), "parent", None)
        name = str(getattr(made, "primitive", ""))
        if made is None or id(made) in seen or name in PRODUCTS:
            continue
        if name == "sqrt" or re.search(r"\bsqrt\b", str(made.params.get("jaxpr", ""))):
            return True
        seen.add(id(made))
        waiting += made.in_tracers
    return False


class Equation(NamedTuple):
    """One operation of traced code.

    Attributes:
        primitive: its name.
        inputs: tracers, or variables where it is inside of a function that the code calls.
        outvars: variables that stand for what it makes.
        params: those of the primitive.
        source: what JAX keeps of it.
        place: which of its results is meant.
    """

    primitive: str
    inputs: Sequence[object]
    outvars: Sequence[object]
    params: Mapping[str, object]
    source: object
    place: int = 0


class Inside(NamedTuple):
    """A function that traced code calls: its variables, and what it does."""

    inputs: Sequence[object]
    equations: Sequence[Equation]
    results: Sequence[object]


CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call")
"""Primitives that call a function."""


def equation_of(value: object) -> Equation | None:
    """What has made a tracer; None for what the traced code is given."""
    made = getattr(value, "parent", None)
    if made is None:
        return None
    outvars = list(made.outvars)
    place = outvars.index(getattr(value, "val", None))
    return Equation(str(made.primitive), made.in_tracers, outvars, made.params, made, place)


def is_literal(value: object) -> bool:
    """Whether a variable stands for a constant, known or not."""
    return type(value).__name__ == "Literal"


def literal_of(value: object) -> float | None:
    """The number that a tracer or a variable stands for, where it is known; else None."""
    literal = value if is_literal(value) else getattr(value, "val", None)
    if not is_literal(literal):
        return None
    number = np.asarray(getattr(literal, "val", None))
    return float(number) if number.shape == () and number.dtype.kind in "biuf" else None


def bodies_of(equation: Equation) -> list[Inside]:
    """The functions that an operation calls: one, the branches of a condition, or none."""
    params = equation.params
    if equation.primitive == "cond":
        closed = list(cast("Sequence[object]", params["branches"]))
    elif equation.primitive in CALLS:
        closed = [params.get("jaxpr", params.get("call_jaxpr"))]
    else:
        return []
    return [
        _inside(cast("_Jaxpr", getattr(one, "jaxpr", one))) for one in closed if one is not None
    ]


class _Operation(Protocol):
    """What is asked of one of JAX's equations."""

    primitive: object
    invars: Sequence[object]
    outvars: Sequence[object]
    params: Mapping[str, object]


class _Jaxpr(Protocol):
    invars: Sequence[object]
    outvars: Sequence[object]
    eqns: Sequence[_Operation]


def _inside(jaxpr: _Jaxpr) -> Inside:
    equations = [
        Equation(str(one.primitive), one.invars, one.outvars, one.params, one) for one in jaxpr.eqns
    ]
    return Inside(jaxpr.invars, equations, jaxpr.outvars)


class Made(NamedTuple):
    """A function that another one has made.

    Attributes:
        maker: name of the function that made it.
        module: the module of both.
        values: the maker's variables that it uses.
    """

    maker: str
    module: str
    values: dict[str, object]


def made_by(function: Callable[..., object]) -> Made:
    """Which function made an `update` of optax, and with which values.

    Example:
        >>> import optax
        >>> made = made_by(optax.clip_by_global_norm(2.0).update)
        >>> made.maker, made.values
        ('clip_by_global_norm', {'max_norm': 2.0})
    """
    name = getattr(function, "__qualname__", "")
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None)
    values: dict[str, object] = {}
    for variable, cell in zip(code.co_freevars if code else (), cells or (), strict=False):
        with contextlib.suppress(ValueError):  # not filled yet: a function that names itself
            values[variable] = cell.cell_contents
    return Made(name.partition(".")[0], getattr(function, "__module__", "") or "", values)


def is_of_script(function: Callable[..., object]) -> bool:
    """Whether the script has written a function, and no library that is installed."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code is not None and "-packages" not in code.co_filename


CLIPS_BY = ("clip", "global_norm", "minimum")
"""Names that the code of a clip uses; its own name has the first of them."""


def clips_by_code(update: Callable[..., object]) -> bool:
    """Whether an `update` of the script's own, or what it is made in, looks like a clip.

    Example:
        >>> def unit_norm(updates, state, params=None):
        ...     return jax.tree.map(lambda g: jax.numpy.clip(g, -1, 1), updates), state
        >>> clips_by_code(unit_norm)
        True
    """
    plain = inspect.unwrap(update)
    code = getattr(plain, "__code__", None)
    if code is None or not is_of_script(update):
        return False
    inner = [each for each in code.co_consts if hasattr(each, "co_names")]
    names = {name for each in (code, *inner) for name in each.co_names}
    named = CLIPS_BY[0] in getattr(plain, "__qualname__", "").lower()
    return named or not names.isdisjoint(CLIPS_BY)


Hear = Callable[[ArrayLike], None]
Tell = Callable[[jax.Array, int, Hear], None]
"""Hands a traced value to a custom call, with a number, when the compiled code runs; the function
hears of it where the code turns out not to be compiled for this process's CPU."""


@functools.cache
def teller(call: str) -> Tell | None:
    """What a compiled step tells, at no cost to its start.

    JAX starts whatever has effects by a slow way, since it has to wait for them at the end. The
    primitive made here has one all the same, so that no transformation takes it for dead code; it
    is left out where JAX counts the effects of a program that is about to be compiled. For
    transformations it is a debug callback.

    Args:
        call: name of the custom call, of a uint32 and a value.

    Returns:
        None where this JAX does not have all that it takes.
    """
    try:
        return _made_teller(call)
    except Exception:  # other names in another release
        return None


def _made_teller(call: str) -> Tell:
    from jax._src import debugging, effects
    from jax._src.interpreters import partial_eval
    from jax.extend.core import Primitive
    from jax.interpreters import ad, batching, mlir

    class Told(effects.Effect):  # type: ignore[misc]
        """The effect of having told something."""

    effect, count = Told(), effects.ordered_effects.filter_not_in
    staged_like = partial_eval.partial_eval_jaxpr_custom_rules[debugging.debug_callback_p]
    primitive = Primitive(call)
    primitive.multiple_results = True

    @primitive.def_impl  # type: ignore[untyped-decorator]
    def heard(value: jax.Array, *, number: int, hear: Hear) -> list[jax.Array]:
        del number
        hear(value)
        return []

    @primitive.def_effectful_abstract_eval  # type: ignore[untyped-decorator]
    def shapes(value: object, **_: object) -> tuple[list[object], set[Told]]:
        return [], {effect}

    def each(
        values: Sequence[jax.Array], axes: Sequence[int], **params: object
    ) -> tuple[list[jax.Array], list[int]]:
        (value,), (axis,) = values, axes
        for place in range(value.shape[axis]):
            primitive.bind(lax.index_in_dim(value, place, axis, keepdims=False), **params)
        return [], []

    def derived(
        values: Sequence[jax.Array], tangents: Sequence[object], **params: object
    ) -> tuple[list[jax.Array], list[object]]:
        return primitive.bind(*values, **params), []

    def sent(value: jax.Array, *, number: int, hear: Hear) -> list[jax.Array]:
        return list(jax.ffi.ffi_call(call, (), has_side_effect=True)(np.uint32(number), value))

    def bound(ctx: mlir.LoweringRuleContext, *values: object, **params: object) -> object:
        ctx.module_context.add_keepalive(_Bound())
        return mlir.lower_fun(sent, multiple_results=True)(ctx, *values, **params)

    def called_back(value: jax.Array, *, number: int, hear: Hear) -> list[jax.Array]:
        jax.debug.callback(hear, value)
        return []

    batching.primitive_batchers[primitive] = each
    ad.primitive_jvps[primitive] = derived
    ad.primitive_transposes[primitive] = lambda _, *values, **params: [None for _ in values]
    partial_eval.partial_eval_jaxpr_custom_rules[primitive] = staged_like
    mlir.register_lowering(primitive, mlir.lower_fun(called_back, multiple_results=True))
    mlir.register_lowering(primitive, bound, platform="cpu")
    for kinds in (
        effects.lowerable_effects,
        effects.control_flow_allowed_effects,
        effects.custom_derivatives_allowed_effects,
        effects.remat_allowed_effects,
        effects.partial_eval_kept_effects,
    ):
        kinds.add_type(Told)
    # of no other effect does this say anything, so it may stay when a notebook's cell is over
    effects.ordered_effects.filter_not_in = lambda those: [
        one for one in count(those) if one is not effect
    ]

    def tell(value: jax.Array, number: int, hear: Hear) -> None:
        primitive.bind(value, number=number, hear=hear)

    jax.jit(lambda value: tell(value, 0, print)).lower(np.zeros(1, np.uint32))  # it serves
    return tell


class _Bound:
    """Stands in what is compiled for this process alone: another one has nobody who hears it."""

    def __reduce__(self) -> str:
        raise TypeError(
            "a step that steadygrad run observes cannot be serialized: save it without `run`"
        )
