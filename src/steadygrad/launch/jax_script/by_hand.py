"""Clips that a JAX script has written itself, in the code that is traced with its optimizer.

A gradient that an optimizer is handed is followed back through operations on single elements: to
a square root that is the norm of all gradients, or through bounds alone. What that norm was made
of are the gradients before the clip. What the operations do with a gradient of 1 at several norms
tells the threshold, and whether they are a clip at all.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from steadygrad.launch.jax_script.dataflow import BRANCHES, DataFlow, Operation
from steadygrad.launch.jax_script.internals import is_traced, literal_of

Kind = Literal["norm", "tensor", "value"]

MOST_OPERATIONS = 64
"""How many operations a clip may take for one gradient."""

LARGE = 2.0**40
TINY = 2.0**-40
"""Norms far beyond any threshold, and far below; products with them are exact."""

SAME = (
    "convert_element_type",
    "copy",
    "copy_p",
    "stop_gradient",
    "optimization_barrier",
    "reduce_precision",
)
"""Operations that leave a value what it is."""

SHAPES = ("reshape", "broadcast_in_dim", "squeeze", "expand_dims", "transpose", "real", "abs")
"""Further ones that do so as far as a norm goes."""

SUMS = ("add", "add_any", "reduce_sum", "concatenate", "psum")
"""Of which a norm's square is made."""

ELEMENTWISE: Mapping[str, Callable[..., object]] = {
    "mul": np.multiply,
    "div": np.divide,
    "add": np.add,
    "sub": np.subtract,
    "min": np.minimum,
    "max": np.maximum,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
    "neg": np.negative,
    "is_finite": np.isfinite,
    "sqrt": np.sqrt,
    "square": np.square,
}

BOUNDS = ("min", "max", "clamp")


class Unknown(Exception):
    """A number that only the running code knows."""


class HandClip(NamedTuple):
    """One clip by the script's own code.

    Attributes:
        kind: by the norm of all its gradients together, of each, or by value.
        places: of the gradients that it was given.
        limit: its threshold; NaN where only the running code knows it.
        whole: its norm is that of all gradients of the step, and of no others.
    """

    kind: Kind
    places: tuple[int, ...]
    limit: float
    whole: bool


class ClippedByHand(NamedTuple):
    """What was found behind the gradients of a step.

    Attributes:
        before: the gradients before the clip, in order.
        clips: the clips, none of which acts on what another has left.
    """

    before: list[jax.Array]
    clips: list[HandClip]


def clipped_by_hand(
    leaves: Sequence[jax.Array], is_gradient: Callable[[object], bool] = lambda value: False
) -> ClippedByHand | None:
    """The clips of the script's own code that some gradients have passed.

    Args:
        leaves: what an optimizer is handed.
        is_gradient: whether a value is known to be a gradient before any clip.

    Returns:
        None where there are none, or not all that was done to the gradients is understood.
    """
    if not leaves or not all(map(is_traced, leaves)):
        return None
    flow = _Code()
    behind = [_behind(flow, leaf, is_gradient) for leaf in leaves]
    before, groups = list(leaves), dict[object, list[int]]()
    for place, one in enumerate(behind):
        if one is None:
            continue
        base = flow.outside(one.base)
        if not is_traced(base) or _shape(base) != leaves[place].shape:
            return None  # what is inside of a function that the script calls cannot be read
        before[place] = cast("jax.Array", base)
        key = (one.norm.of if one.norm is not None else None), str(one.limit)
        groups.setdefault(key, []).append(place)
    if not groups:
        return None
    clips = []
    for places in groups.values():
        first = cast("_Found", behind[places[0]])
        bases = len(places) if first.norm is None else len(first.norm.of)
        kind: Kind = "tensor" if bases == 1 < len(leaves) else "norm"
        whole = bases == len(places) == len(leaves)
        if bases != len(places) < len(leaves) and kind == "norm":
            return None  # of some that the norm was made of it is not seen what became of them
        clips.append(
            HandClip("value" if first.norm is None else kind, tuple(places), first.limit, whole)
        )
    return ClippedByHand(before, _joined(clips))


def _joined(clips: list[HandClip]) -> list[HandClip]:
    """Clips of one tensor each by the same bound are one loop over them."""
    loops: dict[tuple[Kind, str], HandClip] = {}
    for clip in clips:
        key = clip.kind, str(clip.limit) if clip.kind == "tensor" else str(clip.places)
        other = loops.get(key)
        places = clip.places if other is None else (*other.places, *clip.places)
        loops[key] = clip._replace(places=places)
    return list(loops.values())


@dataclass(eq=False)
class _Norm:
    """A norm of gradients.

    Attributes:
        value: it, or its inverse.
        inverse: whether it is that.
        names: ids of the values that its squares are of, under each name that they have.
        of: their ids under the first name, one a tensor.
        exact: it is the root of the sum of all squares.
    """

    value: object
    inverse: bool
    names: set[int]
    of: frozenset[int]
    exact: bool


@dataclass(eq=False)
class _Found:
    base: object
    norm: _Norm | None
    limit: float


class _Code(DataFlow):
    """The traced code, and the norms that were found in it; one is used by all gradients."""

    def __init__(self) -> None:
        super().__init__()
        self._norms: dict[int, _Norm | None] = {}

    def norm(self, value: object, root: Operation) -> _Norm | None:
        """The norm that a root is; None where it is none."""
        if id(value) not in self._norms:
            self._norms[id(value)] = _norm_of(self, value, root)
        return self._norms[id(value)]


def _behind(flow: _Code, leaf: jax.Array, is_gradient: Callable[[object], bool]) -> _Found | None:
    """The clip that one gradient has passed; None for none."""
    handed = flow.resolved(leaf)
    norms = _norms_in(flow, handed)
    for norm in norms:
        base, is_alone = _base_in(flow, handed, norm)
        if base is not None and (is_alone or (len(norms) == 1 and is_gradient(flow.outside(base)))):
            limit = _norm_limit(flow, handed, base, norm)
            alone = _shape(handed) == () and len(norm.of) == 1  # which of two numbers is it?
            is_clip = limit < math.inf or (math.isnan(limit) and not alone)
            return _Found(base, norm, limit) if is_clip else None
    if norms:
        return None
    bounded = _without_bounds(flow, handed)
    if bounded is None:
        return None
    return _Found(bounded, None, _value_limit(flow, handed, bounded))


def _operands(operation: Operation | None) -> Sequence[object]:
    """What an operation on elements was given; nothing for another one."""
    if operation is None:
        return ()
    name = operation.name
    others = ("broadcast_in_dim", "reshape", "select_n", "clamp", BRANCHES)
    return operation.inputs if name in (*ELEMENTWISE, *SAME, *others) else ()


def _norms_in(flow: _Code, handed: object) -> list[_Norm]:
    """Roots of sums of squares that a gradient was multiplied or divided by, nearest first."""
    norms: list[_Norm] = []
    waiting, seen = deque([handed]), set[int]()
    while waiting and len(seen) < MOST_OPERATIONS:
        value = waiting.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        operation = flow.operation(value)
        if operation is None:
            continue
        if operation.name in ("sqrt", "rsqrt") and _shape(value) == ():
            norm = flow.norm(value, operation)
            if norm is not None:
                norms.append(norm)
            continue
        waiting.extend(_operands(operation))
    return norms


def _norm_of(flow: DataFlow, value: object, root: Operation) -> _Norm | None:
    norm = _Norm(value, root.name == "rsqrt", set(), frozenset(), True)
    waiting = [root.inputs[0]]
    while waiting:
        term = waiting.pop()
        if literal_of(term) is not None:
            continue
        operation = flow.operation(term)
        if operation is None:
            return None
        squared = _squared(flow, operation)
        if squared is not None:
            inside = flow.operation(squared)
            if inside is not None and inside.name == "sqrt":
                waiting.append(inside.inputs[0])
            else:
                _add_bases(flow, squared, norm)
        elif operation.name in (*SUMS, *SAME, *SHAPES):
            waiting.extend(operation.inputs)
        elif operation.name in ("div", "mul"):  # a mean of squares, or some of them weighted
            norm.exact = False
            waiting.extend(one for one in operation.inputs[: 1 if operation.name == "div" else 2])
        else:
            return None
    return norm if norm.of else None


def _squared(flow: DataFlow, operation: Operation) -> object | None:
    """What an operation squares; None where it does not."""
    name, inputs = operation.name, operation.inputs
    if name == "square" or (name == "integer_pow" and operation.params.get("y") == 2):
        return inputs[0]
    if name in ("mul", "dot_general") and len(inputs) == 2:
        first, second = (_stripped(flow, one)[-1] for one in inputs)
        return inputs[0] if first is second else None
    return None


def _stripped(flow: DataFlow, value: object) -> list[object]:
    """A value under the names that operations give it which leave it what it is."""
    names = [value]
    while True:
        operation = flow.operation(names[-1])
        if operation is None or operation.name not in (*SAME, *SHAPES):
            return names
        names.append(operation.inputs[0])


def _add_bases(flow: DataFlow, value: object, norm: _Norm) -> None:
    names = _stripped(flow, value)
    if literal_of(names[-1]) is not None:  # the imaginary part of what is real
        return
    operation = flow.operation(names[-1])
    if operation is not None and operation.name == "concatenate":  # raveled into one vector
        for part in operation.inputs:
            _add_bases(flow, part, norm)
        return
    norm.of |= {id(names[-1])}
    norm.names.update(map(id, names))


def _base_in(flow: DataFlow, handed: object, norm: _Norm) -> tuple[object | None, bool]:
    """The gradient of a norm that operations on elements have made another one of.

    Returns:
        It, if any; and whether they were given nothing else that has elements: a penalty on
        weights adds what has a norm to the gradient.
    """
    waiting, seen, bases = deque([handed]), set[int](), dict[int, object]()
    is_alone = True
    while waiting and len(seen) < MOST_OPERATIONS:
        value = waiting.popleft()
        if id(value) in seen or value is norm.value or literal_of(value) is not None:
            continue
        seen.add(id(value))
        if id(value) in norm.names:
            bases[id(_stripped(flow, value)[-1])] = value
            continue
        operands = _operands(flow.operation(value))
        is_alone = is_alone and (bool(operands) or _shape(value) == ())
        waiting.extend(operands)
    return (next(iter(bases.values())) if len(bases) == 1 else None), is_alone


def _without_bounds(flow: DataFlow, handed: object) -> object | None:
    """What a gradient was before bounds were put to its elements; None where none were."""
    value, bounded = handed, False
    while (operation := flow.operation(value)) is not None:
        if operation.name == "clamp":
            value, bounded = operation.inputs[1], True
        elif operation.name in BOUNDS:
            arrays = [one for one in operation.inputs if not _is_number(flow, one)]
            if len(arrays) != 1:
                break
            value, bounded = arrays[0], True
        elif operation.name in SAME and not bounded:
            value = operation.inputs[0]
        else:
            break
    return value if bounded else None


def _is_number(flow: DataFlow, value: object) -> bool:
    """Whether a value is one number for all elements, and known."""
    try:
        _evaluated(flow, value, {})
    except Unknown:
        return False
    return True


def _norm_limit(flow: DataFlow, handed: object, base: object, norm: _Norm) -> float:
    """The threshold of what was done by a norm; NaN where it is not known, inf where nothing is."""

    def at(size: float) -> float:
        numbers = {id(base): 1.0, id(norm.value): 1 / size if norm.inverse else size}
        return float(_evaluated(flow, handed, numbers))

    try:
        limits = [at(size) * size for size in (LARGE, LARGE**2)]
        below = at(TINY)
    except Unknown:
        return math.nan
    if at(LARGE) == 1.0:
        return math.inf
    is_clip = norm.exact and math.isclose(*limits, rel_tol=1e-6) and below == 1.0
    return _as_typed(limits[0]) if is_clip and limits[0] > 0 else math.nan


def _value_limit(flow: DataFlow, handed: object, base: object) -> float:
    """The bound on each element; NaN where it is not the same on both sides."""
    low, high = (float(_evaluated(flow, handed, {id(base): one})) for one in (-LARGE, LARGE))
    return _as_typed(high) if high == -low and 0 < high < LARGE else math.nan


def _as_typed(number: float) -> float:
    """A threshold as the script has it, which float32 has rounded."""
    return float(str(np.float32(number)))


def _evaluated(flow: DataFlow, value: object, numbers: Mapping[int, float]) -> np.float64:
    """A value, for elements that are all the same.

    Args:
        flow: of the traced code.
        value: it.
        numbers: those in place of values, by their ids.

    Raises:
        Unknown: it depends on others.
    """
    fixed = {key: np.float64(number) for key, number in numbers.items()}
    with np.errstate(all="ignore"):
        return _number(flow, value, fixed, MOST_OPERATIONS)


def _number(flow: DataFlow, value: object, fixed: dict[int, np.float64], depth: int) -> np.float64:
    if id(value) in fixed:
        return fixed[id(value)]
    literal = literal_of(value)
    if literal is not None:
        return np.float64(literal)
    operation = flow.operation(value)
    operands = _operands(operation)
    if operation is None or not operands or depth == 0:
        raise Unknown
    name = operation.name
    made = [_number(flow, one, fixed, depth - 1) for one in operands]
    if name in ELEMENTWISE:
        result = ELEMENTWISE[name](*made)
    elif name == "clamp":
        result = np.clip(made[1], made[0], made[2])
    elif name in ("select_n", BRANCHES):
        result = made[1 + int(made[0])]
    else:
        result = made[0]
    fixed[id(value)] = np.float64(cast("float", result))
    return fixed[id(value)]


def _shape(value: object) -> tuple[int, ...]:
    return cast("tuple[int, ...]", getattr(value, "shape", ()))


def values_bound(clip: HandClip) -> Callable[..., tuple[list[jax.Array], None]]:
    """What does the same as a clip by value, in the manner of an `update` of optax."""

    def update(leaves: list[jax.Array]) -> tuple[list[jax.Array], None]:
        return [jnp.clip(leaf, -clip.limit, clip.limit) for leaf in leaves], None

    return update
