"""The optimizers inside an optimizer, and copies of a wrapper with others in their place.

SAM, Lookahead, ZeroRedundancyOptimizer and their like hold the optimizer that does the work in an
attribute of their own. Whatever is done to the outer one must reach the inner ones too.
"""

from __future__ import annotations

import copy
import enum
import functools
import random
import sys
import types
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import numpy as np
import torch

from steadygrad.torch.gradients.parameters import parameters_of
from steadygrad.torch.internals.alive import alive
from steadygrad.torch.internals.private import calls_hooks

Original = TypeVar("Original")

HOOKS = frozenset(
    {
        "_optimizer_step_pre_hooks",
        "_optimizer_step_post_hooks",
        "_optimizer_state_dict_pre_hooks",
        "_optimizer_state_dict_post_hooks",
        "_optimizer_load_state_dict_pre_hooks",
        "_optimizer_load_state_dict_post_hooks",
        "_zero_grad_profile_name",
        "_steadygrad",
        "__getstate__",
        "step",
        "_steadygrad_stand_in",
    }
)
"""Attributes that torch, a scheduler or `attach` put on an optimizer: no step writes to them."""

STAND_IN = "_steadygrad_stand_in"
"""Attribute of a shadow or a copy: hooks that see it step need not take it for the script's."""

_OPAQUE = (
    torch.nn.Module,
    torch.Tensor,
    torch.Generator,
    type,
    types.ModuleType,
    types.FunctionType,
    types.BuiltinFunctionType,
    str,
    bytes,
)
SOURCES_OF_NUMBERS = (
    torch.Generator,
    random.Random,
    np.random.Generator,
    np.random.RandomState,
)
_DEEPEST = 3
"""How far an optimizer is looked for: behind an attribute, in a container, in an object there."""


def inner_optimizers(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """The optimizers that an optimizer holds, at any depth, without itself.

    Example:
        >>> sgd = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        >>> wrapper = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        >>> wrapper.parts = {"inner": [sgd]}
        >>> inner_optimizers(wrapper) == [sgd], inner_optimizers(sgd)
        (True, [])
    """
    seen: dict[int, Any] = {id(optimizer): optimizer}
    _search(vars(optimizer), seen, 0)
    return [each for each in seen.values() if isinstance(each, torch.optim.Optimizer)][1:]


def is_facade(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it moves nothing itself: a layer-wise one, whose inner ones step in `backward`.

    Example:
        >>> weight = torch.zeros(1, requires_grad=True)
        >>> outer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        >>> is_facade(outer)
        False
        >>> outer.optimizer_dict = {weight: torch.optim.SGD([weight], lr=1.0)}
        >>> is_facade(outer)
        True
    """
    own = (p for group in optimizer.param_groups for p in group["params"])
    return not any(p.requires_grad for p in own) and bool(inner_optimizers(optimizer))


def has_no_step(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its `step` is none: it moves the weights during `backward`, as LOMO does.

    Example:
        >>> has_no_step(torch.optim.Optimizer([torch.zeros(1)], {}))
        True
        >>> has_no_step(torch.optim.SGD([torch.zeros(1)], lr=1.0))
        False
    """
    step = type(optimizer).step
    code = getattr(getattr(step, "__wrapped__", step), "__code__", None)
    return code is not None and code.co_names == ("NotImplementedError",)


def holds_parameters_of(outer: torch.optim.Optimizer, inner: torch.optim.Optimizer) -> bool:
    """Whether a step of the inner optimizer is a part of the outer one's.

    Args:
        outer: whose step is under way.
        inner: which begins a step meanwhile.

    Returns:
        True where the outer one holds the inner one, or one of its parameters.
    """
    own = {id(p) for group in outer.param_groups for p in group["params"]}
    shares = any(id(p) in own for group in inner.param_groups for p in group["params"])
    return shares or any(each is inner for each in inner_optimizers(outer))


def works_beside(outer: torch.optim.Optimizer, inner: torch.optim.Optimizer) -> bool:
    """Whether an inner optimizer moves weights of a model that are none of the outer one's.

    So do optimizers that move matrices themselves and leave the rest to an Adam. What a wrapper
    copies of its own weights, for another precision say, is of no model.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> outer, inner = (torch.optim.SGD([p], lr=1.0) for p in layer.parameters())
        >>> copy = torch.optim.SGD([layer.bias.detach().clone()], lr=1.0)
        >>> works_beside(outer, inner), works_beside(outer, copy), works_beside(outer, outer)
        (True, False, False)
    """
    own = set(map(id, parameters_of(outer)))
    theirs = set(map(id, parameters_of(inner)))
    if not theirs or not own.isdisjoint(theirs):
        return False
    return any(
        id(parameter) in theirs
        for module in alive(torch.nn.Module)
        for parameter in vars(module).get("_parameters", {}).values()
    )


def wrapper_without_hooks(inner: torch.optim.Optimizer) -> torch.optim.Optimizer | None:
    """The outermost optimizer that holds this one, calls no hooks, and whose step is under way.

    Its class's `__init__` is not torch's; told by its method among the callers.
    """
    outer, frame = None, sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        code = frame.f_code
        if code.co_name == "step" and code.co_argcount:
            owner = frame.f_locals.get(code.co_varnames[0])
            if isinstance(owner, torch.optim.Optimizer) and _holds_unhooked(owner, inner):
                outer = owner
    return outer


def _holds_unhooked(outer: torch.optim.Optimizer, inner: torch.optim.Optimizer) -> bool:
    # what has no groups of its own passes a step on, when it likes
    if "param_groups" not in vars(outer) or is_stand_in(outer) or calls_hooks(outer):
        return False
    return any(each is inner for each in inner_optimizers(outer))


def is_stand_in(optimizer: torch.optim.Optimizer) -> bool:
    """Whether this is a shadow or a copy of an optimizer, made here for one step."""
    return STAND_IN in vars(optimizer)


class Rebuilding:
    """Builds a second optimizer like a first one, with its inner optimizers replaced likewise.

    Args:
        tensor: what stands in the place of a tensor outside `param_groups` and `state`.
        groups: what stands in the place of `param_groups`.
        state: what stands in the place of `state`.
        bare_step: the class's `step`, without the hooks that stand on it.
    """

    def __init__(
        self,
        tensor: Callable[[torch.Tensor], torch.Tensor],
        groups: Callable[[list[dict[str, object]]], list[dict[str, object]]],
        state: Callable[[dict[object, object]], dict[object, object]],
        bare_step: Callable[..., object],
    ) -> None:
        self._tensor, self._groups, self._state = tensor, groups, state
        self._bare_step = bare_step
        self._built: dict[int, Any] = {}
        self._originals: list[object] = []  # an id names nothing once its object is gone

    def optimizer(self, original: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """The second optimizer; it shares nothing that was replaced."""
        built: torch.optim.Optimizer | None = self._built.get(id(original))
        if built is not None:
            return built
        second = object.__new__(type(original))
        self._note(original, second)
        for key, value in vars(original).items():
            if key == "param_groups":
                second.__dict__[key] = self._once(value, self._groups_of_its_own)
            elif key == "state":
                second.__dict__[key] = self._once(value, self._state)
            elif key in HOOKS:
                second.__dict__[key] = value
            else:
                second.__dict__[key] = self._value(value, 0)
        # inside a wrapper's step no hook may run on what is not an optimizer of the script
        second.__dict__[STAND_IN] = True
        second.__dict__["step"] = functools.partial(self._bare_step, second)
        return second

    def _groups_of_its_own(self, originals: list[dict[str, object]]) -> list[dict[str, object]]:
        """The groups; what a step writes into one, such as a list of step sizes, is another's."""
        groups = self._groups(originals)
        for group in groups:
            if id(group) not in self._built:  # of a wrapper and its inner optimizer, both
                self._note(group, group)
                group.update((k, self._value(v, 1)) for k, v in group.items() if k != "params")
        return groups

    def _once(self, original: Original, build: Callable[[Original], Original]) -> Original:
        if id(original) not in self._built:
            self._note(original, build(original))
        return cast("Original", self._built[id(original)])

    def _note(self, original: object, second: object) -> None:
        self._built[id(original)] = second
        self._originals.append(original)

    def _value(self, value: object, depth: int) -> Any:
        if isinstance(value, torch.Tensor):
            return self._once(value, self._tensor)
        if isinstance(value, torch.optim.Optimizer):
            return self.optimizer(value)
        if id(value) in self._built:
            return self._built[id(value)]
        if isinstance(value, SOURCES_OF_NUMBERS):
            return self._once(value, _same_source)
        if isinstance(value, types.MethodType):
            owner = value.__self__
            if not isinstance(owner, torch.optim.Optimizer):
                return value
            return types.MethodType(value.__func__, self.optimizer(owner))
        if isinstance(value, functools.partial):
            arguments = [self._value(each, depth + 1) for each in value.args]
            return functools.partial(
                self._value(value.func, depth + 1), *arguments, **value.keywords
            )
        if depth > _DEEPEST or isinstance(value, _OPAQUE):
            return value
        return self._container(value, depth + 1)

    def _container(self, value: Any, depth: int) -> Any:
        if isinstance(value, dict):
            second = copy.copy(value)
            self._note(value, second)
            second.update((key, self._value(each, depth)) for key, each in value.items())
            return second
        if type(value) is tuple:
            return tuple(self._value(each, depth) for each in value)
        if type(value) in (list, deque):
            row = copy.copy(value)
            self._note(value, row)
            row.clear()
            row.extend([self._value(each, depth) for each in value])
            return row
        if isinstance(value, (set, bytearray, np.ndarray)):
            return self._once(value, copy.copy)
        if getattr(value, "__dict__", None) and (_search_finds(value) or is_helper(value)):
            return self._object(value, depth)
        return value

    def _object(self, value: object, depth: int) -> object:
        """A helper of an optimizer, such as a schedule that its steps move on."""
        try:
            second = copy.copy(value)
        except Exception:  # it cannot be copied: both have it
            return value
        if second is not value:
            self._note(value, second)
            for key, each in vars(value).items():
                second.__dict__[key] = self._value(each, depth)
        return second


def is_helper(value: object) -> bool:
    """Whether this is an object of an optimizer's own, such as a schedule, that steps may write to.

    It holds no file, lock, thread or the like, so that a second one may come and go.

    Example:
        >>> class Schedule:
        ...     count = 0
        >>> plan = Schedule()
        >>> plan.count += 1
        >>> is_helper(plan), is_helper(torch.nn.Linear(1, 1)), is_helper(sys)
        (True, False, False)
    """
    kind = type(value)
    foreign = kind.__module__.partition(".")[0] in sys.stdlib_module_names
    single = isinstance(value, (*_OPAQUE, torch.optim.Optimizer, enum.Enum))
    has_parts = bool(getattr(value, "__dict__", None))
    return has_parts and not (single or foreign or hasattr(kind, "__del__"))


def source_state(source: Any) -> Any:
    """The state of a generator of random numbers, nothing of which it changes later."""
    if isinstance(source, torch.Generator):
        return source.get_state()
    if isinstance(source, random.Random):
        return source.getstate()
    if isinstance(source, np.random.RandomState):
        return source.get_state()
    return copy.deepcopy(source.bit_generator.state)


def set_source_state(source: Any, state: Any) -> None:
    """Put a generator back where `source_state` found it."""
    if isinstance(source, random.Random):
        source.setstate(state)
    elif isinstance(source, (torch.Generator, np.random.RandomState)):
        source.set_state(state)
    else:
        source.bit_generator.state = state


def _same_source(source: Any) -> Any:
    """A second generator of random numbers in the same state."""
    if not isinstance(source, torch.Generator):
        return copy.deepcopy(source)
    second = torch.Generator(source.device)
    second.set_state(source.get_state())
    return second


def without_parameters(groups: list[dict[str, object]]) -> list[dict[str, object]]:
    """The same groups, empty."""
    return [{**group, "params": []} for group in groups]


def no_state(state: dict[object, object]) -> dict[object, object]:
    """The state of an optimizer that has not stepped yet."""
    return defaultdict(dict)


def _search(holder: object, seen: dict[int, object], depth: int) -> None:
    for each in _parts(holder):
        if id(each) in seen or depth > _DEEPEST:
            continue
        if isinstance(each, torch.optim.Optimizer):
            seen[id(each)] = each
            _search(vars(each), seen, depth + 1)
        elif not isinstance(each, (*_OPAQUE, int, float)):
            seen[id(each)] = each
            _search(each, seen, depth + 1)


def _search_finds(holder: object) -> bool:
    seen: dict[int, Any] = {}
    _search(holder, seen, 0)
    return any(isinstance(each, torch.optim.Optimizer) for each in seen.values())


def _parts(holder: object) -> Iterable[object]:
    """What an object holds, as far as an optimizer may be among it."""
    if isinstance(holder, dict):
        return [each for key, each in holder.items() if key not in _NO_OPTIMIZER]
    if isinstance(holder, (list, tuple)):
        return holder
    if isinstance(holder, types.MethodType):
        return [holder.__self__] if isinstance(holder.__self__, torch.optim.Optimizer) else []
    if isinstance(holder, functools.partial):
        return [holder.func, *holder.args]
    return list(getattr(holder, "__dict__", {}).values())


_NO_OPTIMIZER = HOOKS | {"param_groups", "state", "defaults"}


_WRAPPER: object = torch.optim.Optimizer.profile_hook_step(lambda self: None).__code__
"""Code of the function that torch puts around every `step` to call hooks."""


def steps_running(optimizer: torch.optim.Optimizer, at_least: int) -> bool:
    """Whether steps of this optimizer are running further out: 2 inside a `super().step()`.

    Told from a step that raised and left its mark by counting torch's wrappers around
    `step` among the callers.
    """
    steps = 0
    frame = sys._getframe(1)
    while frame is not None and steps < at_least:
        steps += frame.f_code is _WRAPPER and frame.f_locals.get("self") is optimizer
        frame = frame.f_back  # type: ignore[assignment]
    return steps >= at_least
