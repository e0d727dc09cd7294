"""On what terms a step is one that is only looked at, and what C then does of it.

At most steps `steadygrad run` reads the gradients and keeps the figures. C does that (see
``kernels/_quiet.c``) as long as what is said here holds; every other step is the engine's.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Any, NamedTuple

from steadygrad.kernels import native
from steadygrad.kernels.native import Empty, Same


class StepTerms(NamedTuple):
    """What C needs for a step, in the order in which it knows them.

    Attributes:
        optimizer: refers to it weakly.
        same: what holds as long as these terms do.
        empty: likewise.
        now: what must hold beside, and may not at one step alone.
        modules: where `maker` is among them, steps of an optimizer without state are not for C.
        maker: see `steadygrad.torch.internals.state_makers`.
        listed: the parameters, as the groups have them.
        params: the same, each once.
        sparse: some gradients may be.
        rest: where there is nothing in these, no clip call was made before the step.
        unread: what is known of such a step.
        clocks: those that such a step moves.
        meter: counts the backward passes.
        passes: see `QuietSteps.passes`; asked about other steps.
        seal: reads gradients that C has refused; gives None where not at this step, and False where
            these terms do not hold any more.
        heard: gives the loss.
        engine: whose ``step``, ``steps``, ``seconds`` and ``sealed`` follow.
        under_way: its step until that is over.
        sampler: has ``idle_before``, the step from which it has something to do.
        sample: does that.
        journal: its ``latest`` becomes the step.
        kind: of the step; see `SealedStep`.
        number: of the optimizer within the run.
        ids: of its tensors.
        time: gives the seconds since the Unix epoch.
        queue: takes steps.
        append: adds one to it.
        room: as long as there are fewer in it.
        shut: as long as there is nothing in these.
        file: hands over other steps; see `Journal.seal`.
        unusual: has ``bounds``; see `UnusualSteps`.
        waiting: its steps that wait.
        notice: told of a step otherwise: its number, norm and loss.
        clock: gives seconds.
        spent: is told of all seconds spent here so far.
        every: after so many steps.
    """

    optimizer: Callable[[], object]
    same: Same
    empty: Empty
    now: Same
    modules: dict[str, Any]
    maker: str
    listed: list[Any]
    params: list[Any]
    sparse: bool
    rest: Empty
    unread: tuple[Any, ...]
    clocks: tuple[object, ...]
    meter: object
    passes: Callable[..., object]
    seal: Callable[..., object]
    heard: Callable[[], object]
    engine: object
    under_way: object
    sampler: object
    sample: Callable[..., None]
    journal: object
    kind: type[tuple[Any, ...]]
    number: int
    ids: object
    time: Callable[[], float]
    queue: Sized
    append: Callable[[Any], None]
    room: int
    shut: Empty
    file: Callable[..., None]
    unusual: object
    waiting: list[tuple[int, float, float]]
    notice: Callable[[int, float, float], None]
    clock: Callable[[], float]
    spent: Callable[[float], None]
    every: int


class CallTerms(NamedTuple):
    """Terms on which a call before or after a step has nothing to do, as C knows them.

    Attributes:
        optimizers: refer to those weakly whose steps these are.
        idle: refer weakly to engines, none of which has a step under way.
        same: what holds as long as these terms do.
        now: the same, of what changes from call to call.
        empty: likewise.
        sets: what is set by such a call: owners, names, values.
        owner: has a count of the calls; None for none.
        counted: the name of that.
    """

    optimizers: tuple[Callable[[], object], ...]
    idle: tuple[Callable[[], object], ...] = ()
    same: Same = ()
    now: Same = ()
    empty: Empty = ()
    sets: Same = ()
    owner: object = None
    counted: str = ""


class PassTerms(NamedTuple):
    """Terms on which a backward pass only tells its loss, as C knows them.

    Attributes:
        same: what holds as long as these terms do.
        now: what must hold beside, and may not at one pass alone.
        task: gives -1 where no pass is under way in this thread.
        tensor: the type of a root that calls nothing again.
        losses: a `LossMeter`.
        owner: has a count of the passes.
        counted: the name of that.
    """

    same: Same
    now: Same
    task: Callable[[], int]
    tensor: type
    losses: object
    owner: object
    counted: str


class GradTerms(NamedTuple):
    """Terms on which a call of `torch.autograd.grad` is one by a single input, as C knows them.

    Attributes:
        same: what holds as long as these terms do.
        by: the type of such an input.
    """

    same: Same
    by: type


class ClipPattern(NamedTuple):
    """What C knows of clip calls that are alike; see `steadygrad.torch.clip_calls.usual`.

    Attributes:
        pattern: of these calls, as `over` wants it.
        addresses: of the parameters, in order.
        ids: the same numbers, as a reading has them.
        others: the ids of other patterns, of other parameters.
        behind: the arguments behind the parameters.
        clock: of all of them.
        since: backward passes between their last step and such a call.
        limit: the threshold.
        max_norm: the same, as the script gave it.
        facts: attributes of such a call, but for its norm and coefficient.
    """

    pattern: object
    addresses: bytes
    ids: list[int]
    others: tuple[list[int], ...]
    behind: tuple[object, ...]
    clock: object
    since: int
    limit: float
    max_norm: object
    facts: dict[str, Any]


class ClipTerms(NamedTuple):
    """Terms on which a clip call is like the one before, as C knows them.

    Attributes:
        same: what holds as long as these terms do.
        empty: what must be beside, and may not at one call alone.
        log: a `ClipLog`.
        losses: a `LossMeter`.
        entry: has ``seconds``.
        timer: gives them.
        modules: where `flat` is among them, parameters may be pieces of others,
        flat: a module's name,
        distributed: if this says so.
        generator: the type of what can be read only once.
        failing: gives the like of such a one that raised an exception after some items.
        reading: a `GradientReading`'s type.
        of_reading: attributes of one at such a call.
        weight: a `WeightAtCall`'s type.
        note: a `ClipCall`'s type.
        over: told of the end of a call that left no finite norm: its pattern, its reading, the
            gradients and what the function returns.
        sparse: some gradients may be.
        patterns: of the calls.
    """

    same: Same
    empty: Empty
    log: object
    losses: object
    entry: object
    timer: Callable[[], float]
    modules: dict[str, Any]
    flat: str
    distributed: Callable[[], bool]
    generator: type
    failing: Callable[[list[Any], Exception], object]
    reading: type
    of_reading: dict[str, Any]
    weight: type[tuple[Any, ...]]
    note: type
    over: Callable[..., object]
    sparse: bool
    patterns: tuple[ClipPattern, ...]


Terms = StepTerms | CallTerms | PassTerms | GradTerms | ClipTerms
Hook = Callable[..., Any]
Fault = Callable[[Exception], None]


def quiet_step(otherwise: Hook, prepare: Callable[[], StepTerms | None], fault: Fault) -> Hook:
    """A hook before a step, by C on terms.

    Args:
        otherwise: the hook for every other step.
        prepare: gives the terms for the step after such a one; None for none.
        fault: is told of an exception that came up on the way.

    Returns:
        It; `otherwise` itself where C was not built.
    """
    return _by_c("QuietStep", otherwise, prepare, fault)


def quiet_call(otherwise: Hook, prepare: Callable[[], CallTerms | None], fault: Fault) -> Hook:
    """The same for a call before or after a step that has nothing to do on its terms."""
    return _by_c("QuietCall", otherwise, prepare, fault)


def quiet_pass(otherwise: Hook, prepare: Callable[[], PassTerms | None], fault: Fault) -> Hook:
    """The same for what is told of `torch.autograd.backward`."""
    return _by_c("QuietPass", otherwise, prepare, fault)


def quiet_grad(otherwise: Hook, prepare: Callable[[], GradTerms | None], fault: Fault) -> Hook:
    """The same for what is told of `torch.autograd.grad`."""
    return _by_c("QuietGrad", otherwise, prepare, fault)


def quiet_clip(otherwise: Hook, prepare: Callable[[], ClipTerms | None], fault: Fault) -> Hook:
    """The same for what is told of `torch.nn.utils.clip_grad_norm_`."""
    return _by_c("QuietClip", otherwise, prepare, fault)


def _by_c(kind: str, otherwise: Hook, prepare: Callable[[], Terms | None], fault: Fault) -> Hook:
    make = native.QUIET.get(kind)
    return otherwise if make is None else make(otherwise, prepare, fault)
