"""Traces: the orders in which one turn of a training loop can run.

A turn is followed statement by statement, into helpers of the same file, methods of the same
class and closures handed to `step`. A test forks the trace; the same test goes the same way
for the whole turn. A check speaks where **every** trace that holds the acts in question has the
fault, so a branch that is not understood can only silence it.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from steadygrad.lint.events import Kind, LoopEvent, event_of, write_of
from steadygrad.lint.module import Function, Loop, Module, dotted

MOST_TRACES = 96
"""A turn with more ways through it is not judged."""

DEEPEST = 4
"""Helpers are followed this many calls down."""


@dataclass(frozen=True)
class Trace:
    """One way through a turn.

    Attributes:
        events: what happens, in order.
        assumed: test, as text -> whether it holds.
        ended: the turn was left by return, break, continue or raise.
    """

    events: tuple[LoopEvent, ...] = ()
    assumed: dict[str, bool] = field(default_factory=dict)
    ended: bool = False


@dataclass(frozen=True)
class Turn:
    """One turn of a loop that steps an optimizer, or one call of a function that does.

    Attributes:
        home: the loop, or the function or module without a loop.
        traces: the ways through it; empty where there are too many.
    """

    home: Loop | Function | ast.Module
    traces: tuple[Trace, ...]

    @property
    def in_loop(self) -> bool:
        """Whether it is seen to be repeated."""
        return isinstance(self.home, ast.For | ast.AsyncFor | ast.While)


class _TooMany(Exception):
    """The ways through a turn are too many to be judged."""


@functools.lru_cache(maxsize=8)
def turns(module: Module) -> tuple[Turn, ...]:
    """Every turn of a source.

    Args:
        module: the source.

    Returns:
        The turns, in the order of the source.
    """
    walker = _Walker(module)
    homes: dict[Loop | Function | ast.Module, None] = {}
    for call in module.calls:
        event = event_of(module, call)
        if (event and event.kind is Kind.STEP) or walker.steps(call):
            loops = module.loops(call)
            homes.setdefault(loops[0] if loops else module.function(call))
    return tuple(Turn(home, walker.traces(home.body)) for home in homes)


class _Walker:
    def __init__(self, module: Module) -> None:
        self._module = module
        self._eventful: dict[Function, set[Kind]] = {}
        self._settle()

    def _settle(self) -> None:
        """Which functions hold events, by themselves or through helpers: until nothing changes."""
        functions = [f for named in self._module.functions.values() for f in named]
        calls: dict[Function, list[ast.Call]] = {f: [] for f in functions}
        for call in self._module.calls:
            home = self._module.function(call)
            if not isinstance(home, ast.Module):
                calls[home].append(call)
        kinds = {f: {e.kind for c in calls[f] if (e := event_of(self._module, c))} for f in calls}
        changed = True
        while changed:
            changed = False
            for function, inside in calls.items():
                for call in inside:
                    helper = self._helper(call)
                    if helper and not kinds[helper] <= kinds[function]:
                        kinds[function] |= kinds[helper]
                        changed = True
        self._eventful = kinds

    def _helper(self, call: ast.Call) -> Function | None:
        """The function of this file that a call runs, where that can be told."""
        if isinstance(call.func, ast.Name):
            named = self._module.functions.get(call.func.id, [])
            named = [f for f in named if not isinstance(self._module.scope(f), ast.ClassDef)]
        elif isinstance(call.func, ast.Attribute) and dotted(call.func.value) == "self":
            home = self._module.class_of(call)
            named = self._module.functions.get(call.func.attr, [])
            named = [f for f in named if home is not None and self._module.scope(f) is home]
        else:
            return None
        return named[0] if len(named) == 1 else None

    def steps(self, call: ast.Call) -> bool:
        """Whether a call runs a helper that steps an optimizer."""
        helper = self._helper(call)
        return helper is not None and Kind.STEP in self._eventful.get(helper, ())

    def traces(self, body: Sequence[ast.stmt]) -> tuple[Trace, ...]:
        """The ways through a body; none where there are too many."""
        try:
            return tuple(self._block(body, [Trace()], _StatementPlace()))
        except _TooMany:
            return ()

    def _block(
        self, body: Sequence[ast.stmt], traces: list[Trace], place: _StatementPlace
    ) -> list[Trace]:
        for statement in body:
            going = [t for t in traces if not t.ended]
            if not going:
                break
            done = [t for t in traces if t.ended]
            traces = done + self._statement(statement, going, place)
            if len(traces) > MOST_TRACES:
                raise _TooMany
        return traces

    def _statement(
        self, node: ast.stmt, traces: list[Trace], place: _StatementPlace
    ) -> list[Trace]:
        if isinstance(node, ast.If):
            return self._if(node, self._expressions([node.test], traces, place), place)
        if isinstance(node, ast.For | ast.AsyncFor | ast.While):
            head = node.test if isinstance(node, ast.While) else node.iter
            traces = self._expressions([head], traces, place)
            inner = self._block(node.body, traces, replace(place, depth=place.depth + 1))
            return [replace(t, ended=False) for t in inner]
        if isinstance(node, ast.With | ast.AsyncWith):
            heads = [item.context_expr for item in node.items]
            traces = self._expressions(heads, traces, place)
            return self._block(node.body, traces, place)
        if isinstance(node, ast.Try):
            traces = self._block([*node.body, *node.orelse], traces, place)
            final = self._block(node.finalbody, [replace(t, ended=False) for t in traces], place)
            return final if node.finalbody else traces
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            return traces
        traces = self._expressions([node], traces, place)
        if event := write_of(node):
            traces = [self._with(t, event, place) for t in traces]
        if isinstance(node, ast.Return | ast.Break | ast.Continue | ast.Raise):
            return [replace(t, ended=True) for t in traces]
        return traces

    def _if(self, node: ast.If, traces: list[Trace], place: _StatementPlace) -> list[Trace]:
        if not self._matters([*node.body, *node.orelse]):
            return traces
        test, sense = normal(node.test)
        out: list[Trace] = []
        for trace in traces:
            for holds in (True, False):
                if trace.assumed.get(test, holds) != holds:
                    continue
                assumed = {**trace.assumed, test: holds}
                taken = node.body if holds == sense else node.orelse
                if holds == sense:
                    assumed |= dict(_parts(node.test))
                inner = replace(place, guards=(*place.guards, ast.unparse(node.test)))
                out += self._block(taken, [replace(trace, assumed=assumed)], inner)
        return out

    def _matters(self, body: Sequence[ast.stmt]) -> bool:
        """Whether a branch holds an event or leaves the turn."""
        for statement in body:
            for node in ast.walk(statement):
                if isinstance(node, ast.Return | ast.Break | ast.Continue | ast.Raise):
                    return True
                if isinstance(node, ast.stmt) and write_of(node):
                    return True
                if isinstance(node, ast.Call) and (
                    event_of(self._module, node) or self._eventful_call(node)
                ):
                    return True
        return False

    def _eventful_call(self, call: ast.Call) -> bool:
        helper = self._helper(call)
        return helper is not None and bool(self._eventful.get(helper))

    def _expressions(
        self, nodes: Sequence[ast.AST], traces: list[Trace], place: _StatementPlace
    ) -> list[Trace]:
        for call in _calls_in_order(nodes):
            event = event_of(self._module, call)
            if event:
                if event.kind is Kind.STEP:
                    traces = self._closures(call, traces, place)
                traces = [self._with(t, event, place) for t in traces]
            elif helper := self._helper(call):
                traces = self._follow(helper, call, traces, place)
        return traces

    def _closures(self, call: ast.Call, traces: list[Trace], place: _StatementPlace) -> list[Trace]:
        """What a closure does that is handed to `step`, before the step."""
        for argument in [*call.args, *(k.value for k in call.keywords)]:
            if isinstance(argument, ast.Name):
                for function in self._module.functions.get(argument.id, [])[:1]:
                    traces = self._follow(function, call, traces, place)
        return traces

    def _follow(
        self, helper: Function, call: ast.Call, traces: list[Trace], place: _StatementPlace
    ) -> list[Trace]:
        if not self._eventful.get(helper) or place.calls >= DEEPEST:
            return traces
        inner = replace(
            place,
            calls=place.calls + 1,
            through=place.through or call,
            names=_bound(helper, call, place.names),
        )
        return [replace(t, ended=False) for t in self._block(helper.body, traces, inner)]

    def _with(self, trace: Trace, event: LoopEvent, place: _StatementPlace) -> Trace:
        event = replace(
            event,
            subject=_renamed(event.subject, place.names),
            depth=place.depth,
            guards=place.guards,
            through=place.through,
        )
        return replace(trace, events=(*trace.events, event))


@dataclass(frozen=True)
class _StatementPlace:
    """Where a statement stands on the way through a turn."""

    depth: int = 0
    calls: int = 0
    guards: tuple[str, ...] = ()
    through: ast.Call | None = None
    names: dict[str, str] = field(default_factory=dict)


def _calls_in_order(nodes: Sequence[ast.AST]) -> list[ast.Call]:
    """The calls of expressions in the order in which they run: inner before outer."""
    calls: list[ast.Call] = []
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Lambda | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.Call):
            calls.append(node)
        waiting.extend(ast.iter_child_nodes(node))
    return sorted(calls, key=lambda c: (c.end_lineno or 0, c.end_col_offset or 0))


def _bound(helper: Function, call: ast.Call, outer: dict[str, str]) -> dict[str, str]:
    """A helper's parameters -> what the caller calls them."""
    parameters = [a.arg for a in (*helper.args.posonlyargs, *helper.args.args)]
    if parameters[:1] == ["self"]:
        parameters = parameters[1:]
    pairs = [
        *zip(parameters, call.args, strict=False),
        *((k.arg, k.value) for k in call.keywords if k.arg),
    ]
    return {name: _renamed(text, outer) for name, value in pairs if (text := dotted(value))}


def _renamed(subject: str, names: dict[str, str]) -> str:
    root, dot, rest = subject.partition(".")
    return names.get(root, root) + dot + rest


def normal(test: ast.expr) -> tuple[str, bool]:
    """A test as text, and whether the branch below ``if`` is where that text holds.

    Example:
        >>> normal(ast.parse("scaler is None", mode="eval").body)
        ('scaler', False)
    """
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        text, sense = normal(test.operand)
        return text, not sense
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        right = test.comparators[0]
        same = isinstance(test.ops[0], ast.Is | ast.Eq)
        other = isinstance(test.ops[0], ast.IsNot | ast.NotEq)
        if isinstance(right, ast.Constant) and (same or other):
            if right.value is None or right.value is False:
                return ast.unparse(test.left), other
            if right.value is True:
                return ast.unparse(test.left), same
    return ast.unparse(test), True


def _parts(test: ast.expr) -> Iterator[tuple[str, bool]]:
    """What holds besides where a conjunction does."""
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        for value in test.values:
            yield normal(value)
            yield from _parts(value)
