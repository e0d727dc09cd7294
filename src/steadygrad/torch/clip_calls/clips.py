"""The script's own clip calls: what they did, and where in the loop they stand.

Gradients are read before a call changes them, so that the norm on record is the one
before clipping; a step whose gradients nobody touched after the call needs no
second read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch

from steadygrad.kernels import native
from steadygrad.kernels.native import Empty, Same, Stamped
from steadygrad.policies.base import coefficient
from steadygrad.runlog.clip_calls import number
from steadygrad.torch.clip_calls.clocks import Clock, Clocks, WeightAtCall
from steadygrad.torch.clip_calls.readings import EVERY, GradientReading, Part, joined, read
from steadygrad.torch.gradients.measuring import inner_products, namespace, read_whole
from steadygrad.torch.gradients.outcome import PassedStep
from steadygrad.torch.gradients.pieces import whole
from steadygrad.torch.record.losses import LossMeter

_GRAD = attrgetter("grad")

MOST_WAITING = 256


@dataclass
class ClipCall:
    """One call of torch.nn.utils.clip_grad_norm_, clip_grads_with_norm_ or clip_grad_value_.

    Attributes:
        by_value: elements were clamped.
        max_norm: the threshold that the script gave: `max_norm`, or `clip_value`.
        norm_type: p of the norm.
        ids: of the parameters that were passed.
        with_grad: how many of them had a gradient.
        on_gradients: gradients were passed in place of parameters.
        backward_since_step: backward passes between the last step of these parameters and here.
        backward_since_clip: backward passes since the last clip call on them.
        repeated: earlier clip calls on them since that step.
        renewals: how often before it the step's gradients were made anew after a clip call.
        after_step: no backward since a step: the gradients are of the step before, or gone.
        scale: the loss scale that the gradients carried, or None.
        norm: total norm before the call.
        coef: norm after over norm before.
        like: what it was made after, where it is like the call before it; see `UsualCalls`.
    """

    by_value: bool
    max_norm: Any
    norm_type: float
    ids: frozenset[int]
    with_grad: int
    on_gradients: bool
    backward_since_step: int = 0
    backward_since_clip: int = 0
    repeated: int = 0
    renewals: int = 0
    after_step: bool = False
    scale: Any = None
    norm: Any = math.nan
    coef: Any = 1.0
    parts: list[Part] = field(default_factory=list)
    before: list[list[torch.Tensor | None]] = field(default_factory=list)
    clocks: list[Clock] = field(default_factory=list)
    like: object = None

    @property
    def of_parameters(self) -> bool:
        """Whether any parameter was passed: not so for gradients, or a generator used up."""
        return bool(self.ids) and not self.on_gradients

    def concerns(self, own: set[int]) -> bool:
        """Whether it belongs to the step of an optimizer that holds these parameters."""
        return not self.of_parameters or not own.isdisjoint(self.ids)


class Unscaling(NamedTuple):
    """Gradients that a GradScaler divides by its scale.

    Attributes:
        ids: of all parameters that it is for.
        read: those of them with a gradient that was read.
        rows: where each was read, by the parameter's id.
        scale: the loss scale; None where these carried none, or none of them was read.
    """

    ids: frozenset[int]
    read: list[torch.Tensor]
    rows: dict[int, tuple[GradientReading, int]]
    scale: Any


UNREAD = PassedStep()
"""A step that goes by, with gradients that no clip call has read."""


class Rest(NamedTuple):
    """A log that says nothing about the next step of an optimizer.

    Attributes:
        same: owners, names of attributes, and the objects that these stay.
        empty: owners, and names of what is empty where no call was made before that step.
        clocks: those that the step moves then.
        meter: counts the backward passes.
    """

    same: Same
    empty: Empty
    clocks: tuple[Clock, ...]
    meter: LossMeter


class QuietSteps:
    """One optimizer's steps, those before which the script has done nothing unusual.

    Args:
        log: the script's clip calls.
        write: given those before a step, the step's number and how many gradients it has.
        repeats: see `CallBook.repeats`.
    """

    def __init__(
        self,
        log: ClipLog,
        write: Callable[[list[ClipCall], int, int], None],
        repeats: Callable[[object, int], bool],
    ) -> None:
        self._log, self._write, self._repeats = log, write, repeats
        self._params: list[torch.Tensor] | None = None
        self._ids: set[int] = set()
        self._clocks: list[Clock] = []
        self._sharing: object = None

    def passes(self, step: int, params: list[torch.Tensor]) -> PassedStep | None:
        """The optimizer steps; what `ClipLog.stepped` does for such a step.

        Args:
            step: its number.
            params: its own list of all its parameters, the same one until they change.

        Returns:
            What the script did; None, and nothing done, where there is more to say: a loss scale
            was divided out of gradients, or a call has not scaled all of them alike.
        """
        log = self._log
        if params is not self._params or log.clocks.sharing is not self._sharing:
            self._follow(params)
        if log.waiting or log.unscaled or (log.readings and log.has_read_some(self._ids)):
            return self._clipped(step, params)
        now = log.losses.backwards
        for clock in self._clocks:
            if clock.clips or not clock.stepped:
                clock.stepped_at(now)
            else:  # nothing but the time has changed since the last one
                clock.step = now
        return UNREAD

    def rest(self, params: list[torch.Tensor]) -> Rest:
        """What a step without clip calls needs, in place of `passes`."""
        log = self._log
        self._follow(params)
        return Rest(
            ((log, "clocks", log.clocks), (log.clocks, "sharing", self._sharing)),
            ((log, "waiting"), (log, "unscaled"), (log, "readings")),
            tuple(self._clocks),
            log.losses,
        )

    def _clipped(self, step: int, params: list[torch.Tensor]) -> PassedStep | None:
        """The same after clip calls."""
        log = self._log
        reading = None if log.unscaled else log.whole(params)
        if reading is None or reading.sealed is None or not reading.is_usual:
            return None
        call = log.waiting[0] if len(log.waiting) == 1 == len(log.readings) else None
        if call is not None and call.like is not None:
            now, log.waiting, log.readings = log.losses.backwards, [], []
            for clock in self._clocks:
                clock.stepped_at(now)
            calls = [] if self._repeats(call.like, step) else [call]
        else:
            calls = log.stepped_by(self._ids, self._clocks[:-1])
        if calls:
            self._write(calls, step, len(params))
        return PassedStep(reading.sealed, number(reading.threshold), reading.factor)

    def _follow(self, params: list[torch.Tensor]) -> None:
        """Others are moved now, or others share their clocks."""
        ids, log = list(map(id, params)), self._log
        self._params, self._ids = params, set(ids)
        self._clocks = [*log.clocks.of(ids), log.any]
        self._sharing = log.clocks.sharing


class ClipLog(Stamped):
    """Keeps what clip calls found and did, until the step that follows them.

    Args:
        losses: counts backward passes, and knows the loss scale of the last.

    Attributes:
        losses: as given.
        unscaled: ids of parameters whose gradients were divided by it already, until they step.
        clocks: when things last happened to each parameter.
        any: when they last happened to any.
        readings: of gradients that have not stepped yet.
        waiting: calls whose step is still to come.
    """

    def __init__(self, losses: LossMeter) -> None:
        self.losses = losses
        self.unscaled: set[int] = set()
        self.readings: list[GradientReading] = []
        self.clocks = Clocks()
        self.any = Clock()
        self.waiting: list[ClipCall] = []

    def before(
        self,
        parameters: Sequence[object],
        max_norm: object,
        norm_type: float,
        kind: str,
        reads: bool = True,
    ) -> ClipCall:
        """Read the gradients that a call is about to change.

        Args:
            parameters: what the script passed.
            max_norm: its threshold.
            norm_type: its p; figures are of that norm.
            kind: ``value`` clamps elements, ``agc`` bounds units by their weights; any other
                scales all by one factor.
            reads: whether gradients are read: what a call of that other kind did is known without.

        Returns:
            The call, to be handed to `after`.
        """
        owners = _only_tensors(parameters)
        with_grads, grads = _with_gradients(owners)
        ids = list(map(id, owners))
        call = ClipCall(
            by_value=kind == "value",
            max_norm=_now(max_norm),
            norm_type=norm_type,
            ids=frozenset(ids),
            with_grad=len(with_grads),
            on_gradients=bool(owners)
            and not with_grads
            and not any(p.requires_grad or isinstance(p, torch.nn.Parameter) for p in owners),
        )
        self._place(call, ids, with_grads)
        if reads:
            call.parts = self._parts(with_grads, grads, norm_type)
        call.scale = self._scale_of(owners)
        if call.by_value:
            call.before = [_copies(part, max_norm) for part in call.parts]
        elif kind == "agc":
            call.before = [[g.detach().clone() for g in part.grads] for part in call.parts]
        return call

    def after(self, call: ClipCall, total_norm: object, exact: bool = False) -> None:
        """Note what a call has done.

        Args:
            call: as `before` returned it.
            total_norm: the norm that torch found, or None for a call by value.
            exact: the function is one of ours, without torch's 1e-6.
        """
        uneven = total_norm is None
        call.norm = _total(call, "norms") if uneven else _now(total_norm)
        if uneven:
            _note_clamped(call)
        else:
            coefficient_of = exact_coefficient if exact else torch_coefficient
            call.coef = coefficient_of(call.max_norm, call.norm)
        for reading, where, grads in call.parts:
            if not uneven:
                reading.scale(call.coef, where)
            reading.mark(grads, where)
            if call.by_value or not uneven:
                reading.threshold = call.max_norm
        for clock in call.clocks if _is_broken(call.norm) else ():
            clock.broken = True
        call.parts, call.before, call.clocks = [], [], []
        self.waiting.append(call)
        del self.waiting[:-MOST_WAITING]

    def remember(self, reading: GradientReading) -> None:
        """Keep figures that were read elsewhere, for the clip call that may follow."""
        own = set(reading.ids)
        self.readings = [r for r in self.readings if not own.issuperset(r.ids)][-MOST_WAITING:]
        self.readings.append(reading)

    def whole(self, parameters: Sequence[torch.Tensor]) -> GradientReading | None:
        """The reading of exactly these parameters, where nothing has touched a gradient since."""
        ids = list(map(id, parameters))
        for reading in self.readings:
            if reading.ids == ids:
                return reading if reading.holds(parameters) else None
        return None

    def reading_of(self, parameters: Sequence[torch.Tensor]) -> GradientReading | None:
        """What these gradients were before clipping; what no call has read is read now.

        Args:
            parameters: with gradients.

        Returns:
            A reading in their order; None where none of them was read, or is as it was then.
        """
        whole = self.whole(parameters) if self.readings else None
        if whole is not None or not self.readings:
            return whole
        rows = self._rows(parameters)
        readings = [reading for reading, _ in rows.values()]
        if not readings:
            return None
        rows = {key: row for key, row in rows.items() if row[0].norm_type == readings[0].norm_type}
        lacking = [p for p in parameters if id(p) not in rows]
        fresh = read(lacking, readings[0].norm_type)
        rows.update({id(p): (fresh, place) for place, p in enumerate(lacking)})
        return joined([rows[id(p)] for p in parameters])

    def before_unscale(self, parameters: Sequence[torch.Tensor]) -> Unscaling:
        """A `GradScaler.unscale_` begins on the gradients of these."""
        rows = self._rows(parameters)
        read = [p for p in parameters if id(p) in rows]
        return Unscaling(frozenset(map(id, parameters)), read, rows, self._scale_of(read))

    def after_unscale(self, unscaling: Unscaling) -> None:
        """It is over: the figures of the gradients that it divided stay valid, divided too."""
        self.unscaled |= unscaling.ids
        if unscaling.scale is None:
            return
        reading = joined([unscaling.rows[id(p)] for p in unscaling.read])
        reading.unscale(unscaling.scale)
        reading.mark([p.grad for p in unscaling.read if p.grad is not None], EVERY)
        for other in self.readings:
            other.forget(set(reading.ids))
        self.remember(reading)

    def _scale_of(self, parameters: Sequence[torch.Tensor]) -> object:
        """The loss scale that these parameters' gradients carry, or None."""
        if not parameters or id(parameters[0]) in self.unscaled:
            return None
        return self.losses.scale

    def stepped(self, parameters: Sequence[torch.Tensor]) -> list[ClipCall]:
        """An optimizer steps: forget its figures, and return its calls since the last step."""
        ids = list(map(id, parameters))
        return self.stepped_by(set(ids), self.clocks.of(ids))

    def stepped_by(self, own: set[int], clocks: list[Clock]) -> list[ClipCall]:
        """`stepped`, by the ids of the parameters and by their clocks."""
        now = self.losses.backwards
        self.drop(own)
        if self.unscaled:
            self.unscaled -= own
        by_hand = bool(self.waiting) and all(clock.step == now for clock in clocks)
        for clock in (*clocks, self.any):
            clock.stepped_at(now)
        if not self.waiting:
            return []
        calls: list[ClipCall] = []
        others: list[ClipCall] = []
        for call in self.waiting:
            (calls if call.concerns(own) else others).append(call)
        self.waiting = others
        for call in calls if by_hand else ():
            # no backward at all: the gradients come from elsewhere, and stood there at the call
            call.backward_since_step, call.after_step = 1, False
        return calls

    def has_read_some(self, ids: set[int]) -> bool:
        """Whether there is a reading of gradients of these parameters."""
        return any(not ids.isdisjoint(reading.ids) for reading in self.readings)

    def alone(self, parameters: Sequence[torch.Tensor]) -> bool:
        """Whether no backward has run since these last stepped."""
        now = self.losses.backwards
        return all(clock.step == now for clock in self.clocks.of(list(map(id, parameters))))

    def begin(self, parameters: Sequence[torch.Tensor]) -> None:
        """Follow these from here on: what is known under their ids was of others before them."""
        now, ids = self.losses.backwards, list(map(id, parameters))
        self.drop(set(ids))
        self.unscaled.difference_update(ids)
        self.waiting = [call for call in self.waiting if call.ids.isdisjoint(ids)]
        for clock in self.clocks.of(ids):
            clock.stepped_at(now)
            clock.stepped, clock.clip = False, -1

    def forget(self) -> None:
        """Let go of all that was read."""
        self.readings, self.waiting, self.clocks = [], [], Clocks()
        self.unscaled.clear()

    def drop(self, own: set[int]) -> None:
        """Forget what was read of gradients of these parameters.

        Args:
            own: their ids.
        """
        # ids may be used again: what is known of a gradient does not outlive its step
        self.readings = [r for r in self.readings if not own.issuperset(r.ids)]
        for reading in self.readings:
            reading.forget(own)

    def _place(
        self, call: ClipCall, ids: Sequence[int], with_grads: Sequence[torch.Tensor]
    ) -> None:
        now = self.losses.backwards
        clocks = self.clocks.of(ids) if call.of_parameters else [self.any]
        for clock in clocks:
            if clock.is_of_others:
                clock.begins_anew()
                self.waiting = [each for each in self.waiting if call.ids.isdisjoint(each.ids)]
        first = clocks[0]
        if first.is_renewed and now > first.clip:
            for clock in clocks:  # SAM: the gradients of the clip before were for other weights
                clock.clips, clock.renewals = 0, clock.renewals + 1
            call.backward_since_step = now - first.clip
        else:
            call.backward_since_step = now - first.step
        call.renewals = first.renewals
        call.backward_since_clip = now - max(first.clip, first.step)
        call.repeated = first.clips
        call.after_step = first.stepped and now == first.step
        call.clocks = clocks
        mark = WeightAtCall.of(with_grads[0]) if with_grads else None
        for clock in clocks:
            clock.clipped_at(now, mark)

    def _parts(
        self, with_grads: list[torch.Tensor], grads: list[torch.Tensor], norm_type: float
    ) -> list[Part]:
        """The readings of these gradients; those without one are read now."""
        if not with_grads:
            return []
        whole = self.whole(with_grads) if self.readings else None
        if whole is not None:
            return [Part(whole, EVERY, grads)]
        rows = self._rows(with_grads)
        if not rows:
            fresh = read(with_grads, norm_type, grads)
            self.remember(fresh)
            return [Part(fresh, EVERY, grads)]
        unknown = [p for p in with_grads if id(p) not in rows]
        parts = []
        for reading in {id(reading): reading for reading, _ in rows.values()}.values():
            mine = [p for p in with_grads if id(p) in rows and rows[id(p)][0] is reading]
            parts.append(Part(reading, [rows[id(p)][1] for p in mine], _gradients(mine)))
        if unknown:
            fresh = read(unknown, norm_type)
            self.remember(fresh)
            parts.append(Part(fresh, EVERY, _gradients(unknown)))
        return parts

    def _rows(self, parameters: Sequence[torch.Tensor]) -> dict[int, tuple[GradientReading, int]]:
        """The reading and row of each gradient that nothing has changed since, by parameter id."""
        if not self.readings:
            return {}
        rows = {each: (r, i) for r in self.readings for i, each in enumerate(r.ids)}
        pairs = ((p, rows.get(id(p))) for p in parameters)
        return {id(p): row for p, row in pairs if row is not None and row[0].holds_one(row[1], p)}


def _now(figure: Any) -> Any:
    """A figure of the script's, which may change the tensor or array in place that holds it."""
    value = native.try_number(figure)  # which no mode of the script's sees
    if value is not None:
        return value
    if isinstance(figure, torch.Tensor):
        figure = whole(figure.detach())
        if figure.device.type != "cpu":
            return figure.clone()
    return number(figure)


def _is_broken(norm: object) -> bool:
    """Whether a norm is known not to be finite; one on a device is not waited for."""
    if isinstance(norm, torch.Tensor) and (norm.device.type != "cpu" or norm.numel() != 1):
        return False
    return isinstance(norm, (float, torch.Tensor)) and not math.isfinite(norm)


def _only_tensors(arguments: Sequence[Any]) -> list[torch.Tensor]:
    if set(map(type, arguments)) <= {torch.Tensor, torch.nn.Parameter}:
        return list(arguments)
    return [p for p in arguments if isinstance(p, torch.Tensor)]


def _with_gradients(
    owners: list[torch.Tensor],
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Those of them that have a gradient, and it."""
    grads = list(map(_GRAD, owners))
    if type(None) in set(map(type, grads)):
        owners = [p for p, grad in zip(owners, grads, strict=True) if grad is not None]
        grads = [grad for grad in grads if grad is not None]
    return owners, grads


def _gradients(with_grads: list[torch.Tensor]) -> list[torch.Tensor]:
    return list(map(_GRAD, with_grads))


def torch_coefficient(max_norm: Any, total_norm: Any) -> object:
    """What torch multiplies gradients by: its 1e-6 included, 0 for an infinite norm.

    Example:
        >>> torch_coefficient(1.0, torch.tensor(4.0)), torch_coefficient(1.0, torch.tensor(0.5))
        (0.2499999375..., 1.0)
    """
    if isinstance(total_norm, torch.Tensor) and total_norm.device.type != "cpu":
        return torch.clamp(max_norm / (total_norm + 1e-6), max=1.0).detach()
    coef = float(max_norm) / (float(total_norm) + 1e-6)
    return coef if coef < 1.0 or coef != coef else 1.0


def exact_coefficient(max_norm: Any, total_norm: Any) -> object:
    """What our own functions multiply gradients by: 1 for a norm that is not finite.

    Example:
        >>> exact_coefficient(1.0, torch.tensor(4.0)), exact_coefficient(1.0, math.inf)
        (0.25, 1.0)
    """
    on_device = isinstance(total_norm, torch.Tensor) and total_norm.device.type != "cpu"
    norm: Any = total_norm if on_device else np.float64(float(total_norm))
    coef: Any = coefficient(namespace(norm), norm, float(max_norm))
    return coef if on_device else float(coef)


def _copies(part: Part, clip_value: Any) -> list[torch.Tensor | None]:
    """Copies of the gradients that a clamp would change; of all on a device, where asking waits."""
    reading, where, grads = part
    if isinstance(reading.max_abs, torch.Tensor):
        return [grad.detach().clone() for grad in grads]
    over = (reading.max_abs[where] > float(clip_value)) | (reading.nonfinite[where] > 0)
    return [
        grad.detach().clone() if changes else None
        for grad, changes in zip(grads, over.tolist(), strict=True)
    ]


def _note_clamped(call: ClipCall) -> None:
    for (reading, where, grads), before in zip(call.parts, call.before, strict=True):
        changed = [i for i, copy in enumerate(before) if copy is not None]
        if not changed:
            continue
        places = changed if where is EVERY else [where[i] for i in changed]
        left = [grads[i] for i in changed]
        after = read_whole(left, call.norm_type)
        copies = [copy for copy in before if copy is not None]
        reading.clamp(places, after.norms, inner_products(copies, left))
    if any(copy is not None for before in call.before for copy in before):
        call.coef = _total(call, "left") / _total(call, "norms")


def _total(call: ClipCall, column: str) -> Any:
    """The norm of a call's gradients as one vector."""
    if not call.parts:
        return 0.0
    columns = [getattr(reading, column)[where] for reading, where, _ in call.parts]
    if any(isinstance(values, torch.Tensor) for values in columns):
        return torch.linalg.vector_norm(
            torch.cat(list(map(torch.as_tensor, columns))), call.norm_type
        )
    return float(np.linalg.norm(np.concatenate(columns), call.norm_type))
