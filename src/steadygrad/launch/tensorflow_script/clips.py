"""The script's own clip calls in TensorFlow: which gradients of a step have passed which.

TensorFlow's clip functions return new tensors, so a call is known by what it returned: the
gradients of a step are followed back, through one call or several, to the tensors that they
were before. That works in a graph while it is traced as it does eagerly; nothing is read here.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf

from steadygrad.launch.placements import Placement
from steadygrad.tensorflow.engine import Gradient

MOST_HOPS = 8
MOST_WAITING = 256
MOST_STEPS = 8
LINKS = "_steadygrad_links"
THROUGH = frozenset(
    [
        "Cast",
        "CheckNumerics",
        "DebugNumericSummaryV2",
        "EnsureShape",
        "Identity",
        "IdentityN",
        "PreventGradient",
        "StopGradient",
    ]
)
"""Operations between a clip call and a step that leave a gradient what it is."""


@dataclass(eq=False)
class TensorFlowClipCall:
    """One call of a clip function.

    Attributes:
        function: its name, such as ``clip_by_norm``.
        limit: the threshold, a number or a tensor.
        tensors: what it was given, without None.
        use_norm: the norm that the script handed to it, or None.
        axes: along which a norm of each slice is taken; None for one norm of the tensor.
        bounds: the lowest and the highest value, of a call by value.
    """

    function: str
    limit: float | tf.Tensor
    tensors: list[Gradient]
    use_norm: tf.Tensor | None = None
    axes: Sequence[int] | int | None = None
    bounds: tuple[float | tf.Tensor, float | tf.Tensor] = (0.0, 0.0)

    @property
    def by_value(self) -> bool:
        """Whether elements are clamped."""
        return self.function == "clip_by_value"

    @property
    def per_tensor(self) -> bool:
        """Whether each tensor has a norm of its own."""
        return self.function == "clip_by_norm"

    @property
    def static_limit(self) -> float:
        """The threshold where it is known without running anything; else NaN."""
        return static(self.limit)


@dataclass(frozen=True, eq=False)
class Link:
    """One tensor that a clip call returned.

    Attributes:
        call: the call.
        before: the tensor it was given.
        after: the tensor it returned.
    """

    call: TensorFlowClipCall
    before: Gradient
    after: Gradient


@dataclass(eq=False)
class Passed:
    """A call whose result no step has been given yet; keeps no tensor alive."""

    function: str
    limit: float | tf.Tensor
    tensors: list[weakref.ref[Gradient]]
    used: bool = False
    placed: bool = False

    def among(self, ids: Set[int]) -> int:
        """How many of its tensors have one of these ids."""
        there = (ref() for ref in self.tensors)
        return sum(tensor is not None and id(tensor) in ids for tensor in there)


@dataclass(eq=False)
class AppliedGradients:
    """The gradients that a step was given; keeps none alive.

    Attributes:
        refs: id of each to itself.
        tell: called with a clip call that comes for them later.
    """

    refs: dict[int, weakref.ref[Gradient]]
    tell: Callable[[Placement], None]


@dataclass(frozen=True, eq=False)
class ClippedTensor:
    """What is kept of one tensor that a call returned: the call, and what it was given."""

    call: TensorFlowClipCall
    before: Gradient
    passed: Passed


Inside = tuple[dict[int, "weakref.ref[Gradient]"], Callable[[str], object]]
"""The gradients of the step under way, and who is told of clip calls on them."""


@dataclass
class TensorFlowClipLog:
    """Knows what clip calls returned, for as long as that is alive.

    Attributes:
        listens: a backward pass has run since the last step: what is clipped eagerly before may be
            an activation, which must not be kept alive.
        deaf: over 0 while an optimizer works: what it clips by itself is no call of the script's.
    """

    listens: bool = False
    deaf: int = 0
    waiting: list[Passed] = field(default_factory=list)
    _steps: list[AppliedGradients] = field(default_factory=list)
    _inside: Inside = field(default_factory=lambda: ({}, str))
    _links: dict[int, tuple[weakref.ref[Gradient], ClippedTensor]] = field(default_factory=dict)

    def note(
        self, call: TensorFlowClipCall, before: Sequence[Gradient], after: Sequence[Gradient]
    ) -> None:
        """A call is over.

        Args:
            call: it.
            before: what it was given, without None.
            after: what it returned for each.
        """
        if self.deaf:
            self._hear_inside(call.function, before)
        if not before or self.deaf:
            return
        passed = Passed(call.function, call.limit, [weakref.ref(t) for t in before])
        if self._told_late(passed) or (tf.executing_eagerly() and not self.listens):
            return
        self.waiting = [*self.waiting[1 - MOST_WAITING :], passed]
        for original, returned in zip(before, after, strict=True):
            if returned is not original:
                self._remember(returned, ClippedTensor(call, original, passed))

    def _remember(self, returned: Gradient, row: ClippedTensor) -> None:
        graph = graph_of(returned)
        if graph is not None:  # kept by the graph, which lives as long as its tensors may be used
            links = getattr(graph, LINKS, None)
            if links is None:  # a graph has no __dict__
                links = {}
                setattr(graph, LINKS, links)
            links[id(returned)] = (lambda: returned, row)
            return
        key, links = id(returned), self._links
        links[key] = weakref.ref(returned, lambda _: links.pop(key, None)), row

    @contextlib.contextmanager
    def muted(self) -> Iterator[None]:
        """While an optimizer works."""
        self.deaf += 1
        try:
            yield
        finally:
            self.deaf -= 1

    @contextlib.contextmanager
    def at_work(
        self, gradients: Sequence[Gradient | None], tell: Callable[[str], None]
    ) -> Iterator[None]:
        """While an optimizer works.

        Args:
            gradients: what it was given.
            tell: called with the function by which its own code clips these.
        """
        around = self._inside
        refs = {
            id(gradient): weakref.ref(gradient) for gradient in gradients if gradient is not None
        }
        self._inside = refs, tell
        try:
            with self.muted():
                yield
        finally:
            self._inside = around

    def _hear_inside(self, function: str, tensors: Sequence[Gradient]) -> None:
        refs, tell = self._inside
        handed_on = (each for tensor in tensors for each in _behind_branches(tensor))
        if refs and any(id(each) in refs and refs[id(each)]() is each for each in handed_on):
            tell(function)

    def chain(self, gradient: Gradient) -> list[Link]:
        """The clip calls that a gradient has passed, the first one first.

        Args:
            gradient: what a step was given.

        Returns:
            Links; empty where no call is known.
        """
        chain: list[Link] = []
        rows = self._rows_behind(gradient)
        while (entry := next(rows, None)) is not None:
            after, row = entry
            row.passed.used = True
            chain.append(Link(row.call, row.before, after))
            rows = self._rows_behind(row.before)
        return chain[::-1]

    def _rows_behind(self, gradient: Gradient) -> Iterator[tuple[Gradient, ClippedTensor]]:
        for tensor in behind(gradient):
            graph = graph_of(tensor)
            links = self._links if graph is None else getattr(graph, LINKS, {})
            link = links.get(id(tensor))
            if link is not None and link[0]() is tensor:
                yield tensor, link[1]

    def discarded(self, gradients: Sequence[Gradient], of_tensors: int) -> list[Placement]:
        """Calls that were given these gradients, of which a step is given none of the results.

        Args:
            gradients: what a step was given, as no call returned it.
            of_tensors: how many gradients that step has.

        Returns:
            Where they stand.
        """
        ids = set(map(id, gradients))
        placements: list[Placement] = []
        for passed in self.waiting:
            own = passed.among(ids)
            if own and not passed.used and not passed.placed:
                passed.placed = True
                placements.append(_placement_of(passed, own, of_tensors, late=False))
        return _as_one(placements)

    def stepped(self, step: AppliedGradients) -> None:
        """A step was given gradients: a call for them that comes now is late.

        Args:
            step: what it was given.
        """
        self.listens = False
        self._steps = [*self._steps[1 - MOST_STEPS :], step]

    def _told_late(self, passed: Passed) -> bool:
        for step in self._steps:
            own = passed.among({key for key, ref in step.refs.items() if ref() is not None})
            if own:
                step.tell(_placement_of(passed, own, len(step.refs), late=True))
                return True
        return False

    def waits_for(self, gradients: Sequence[Gradient]) -> bool:
        """Whether a call was given one of these, and no step what it returned."""
        ids = set(map(id, gradients))
        return any(passed.among(ids) and not passed.used for passed in self.waiting)

    def lost(self) -> list[str]:
        """Names of functions whose results reached no step, as far as can be seen."""
        lost = [p for p in self.waiting if not p.used and not p.placed]
        return sorted({p.function for p in lost if p.function == "clip_by_global_norm"})


def static(limit: float | tf.Tensor) -> float:
    """A threshold where it is known without running anything; else NaN."""
    value = tf.get_static_value(limit) if tf.is_tensor(limit) else limit
    return float("nan") if value is None else float(np.max(np.abs(np.asarray(value))))


def _placement_of(passed: Passed, tensors: int, of_tensors: int, late: bool) -> Placement:
    return Placement(
        function=f"tf.{passed.function}",
        tensors=tensors,
        passed=len(passed.tensors),
        of_tensors=of_tensors,
        by_value=passed.function == "clip_by_value",
        per_tensor=passed.function == "clip_by_norm",
        late=late,
        discarded=not late,
        max_norm=static(passed.limit),
    )


def _as_one(placements: Sequence[Placement]) -> list[Placement]:
    """Calls for one tensor each, in a loop over gradients, as the one call that they make up."""
    joined: list[Placement] = []
    for one in placements:
        place = next((i for i, other in enumerate(joined) if other.goes_with(one)), None)
        if place is None:
            joined.append(one)
        else:
            joined[place] = joined[place].joined(one)
    return joined


def graph_of(gradient: Gradient) -> tf.Graph | None:
    """The graph that is being traced; None for what has a value."""
    tensor = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
    return None if hasattr(tensor, "numpy") else getattr(tensor, "graph", None)


def behind(tensor: Gradient) -> Iterator[Gradient]:
    """A tensor, and those that it is a copy of in the graph."""
    yield tensor
    for _ in range(MOST_HOPS):
        if tf.executing_eagerly() or not hasattr(tensor, "op"):
            return
        operation = tensor.op
        if operation.type not in THROUGH or not operation.inputs:
            return
        tensor = operation.inputs[tensor.value_index if operation.type == "IdentityN" else 0]
        yield tensor


def _behind_branches(tensor: Gradient) -> Iterator[Gradient]:
    """As `behind`, and out of the branch of a `tf.cond` that the tensor is in."""
    for _ in range(MOST_HOPS):
        last = tensor
        for last in behind(tensor):
            yield last
        outside = [
            outer for outer, inner in getattr(graph_of(last), "captures", ()) if inner is last
        ]
        if not outside:
            return
        tensor = outside[0]
