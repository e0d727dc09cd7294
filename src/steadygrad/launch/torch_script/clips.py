"""The script's own clip calls: what they did, and where in the loop they stand.

Gradients are read before a call changes them, so that the norm on record is the one
before clipping; a step whose gradients nobody touched after the call needs no
second read. A gradient is recognised by its identity and its version counter, which
every in-place change raises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from steadygrad import kernels
from steadygrad.launch.torch_script.observed import Row, rows_of

Mark = tuple[int, int]
"""A gradient's identity and version."""

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
        after_step: no backward since a step: the gradients are of the step before, or gone.
        scale: the loss scale that the gradients carried, or None.
        norm: total norm before the call.
        coef: norm after over norm before.
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
    after_step: bool = False
    scale: Any = None
    norm: Any = math.nan
    coef: Any = 1.0
    grads: list[torch.Tensor] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    before: list[torch.Tensor | None] = field(default_factory=list)

    @property
    def of_parameters(self) -> bool:
        """Whether any parameter was passed: not so for gradients, or a generator used up."""
        return bool(self.ids) and not self.on_gradients

    def concerns(self, own: set[int]) -> bool:
        """Whether it belongs to the step of an optimizer that holds these parameters."""
        return not self.of_parameters or not own.isdisjoint(self.ids)


@dataclass
class Clock:
    """When things last happened to one parameter, in backward passes."""

    step: int = 0
    stepped: bool = False
    clip: int = -1
    clips: int = 0


class ClipLog:
    """Keeps what clip calls found and did, until the step that follows them.

    Args:
        backwards: gives the number of backward passes so far.
        scale_of: gives the loss scale that these parameters' gradients carry, or None.
    """

    def __init__(
        self, backwards: Callable[[], int], scale_of: Callable[[Sequence[torch.Tensor]], Any]
    ) -> None:
        self._backwards = backwards
        self._scale_of = scale_of
        self._rows: dict[int, tuple[Mark, Row]] = {}
        self._clocks: dict[int, Clock] = {}
        self._any = Clock()
        self.waiting: list[ClipCall] = []

    def before(
        self, parameters: Sequence[Any], max_norm: Any, norm_type: float, by_value: bool
    ) -> ClipCall:
        """Read the gradients that a call is about to change.

        Args:
            parameters: what the script passed.
            max_norm: its threshold.
            norm_type: its p; figures are of that norm.
            by_value: it clamps elements.

        Returns:
            The call, to be handed to `after`.
        """
        owners = [p for p in parameters if isinstance(p, torch.Tensor)]
        held = [p for p in owners if p.grad is not None]
        call = ClipCall(
            by_value=by_value,
            max_norm=max_norm,
            norm_type=norm_type,
            ids=frozenset(id(p) for p in owners),
            with_grad=len(held),
            on_gradients=bool(owners) and not held and not any(p.requires_grad for p in owners),
        )
        self._place(call, owners)
        call.grads = [p.grad for p in held if p.grad is not None]
        call.rows = self._read(held, norm_type)
        call.scale = self._scale_of(owners)
        if by_value:
            call.before = [
                g.detach().clone() if row.exceeds(max_norm) else None
                for g, row in zip(call.grads, call.rows, strict=True)
            ]
        return call

    def after(self, call: ClipCall, total_norm: Any) -> None:
        """Note what a call has done.

        Args:
            call: as `before` returned it.
            total_norm: the norm that torch found, or None for a call by value.
        """
        call.norm = total_norm if total_norm is not None else _total(call.rows, call.norm_type)
        if call.by_value:
            _note_clamped(call)
        else:
            call.coef = torch_coefficient(call.max_norm, total_norm)
            for row in call.rows:
                row.scale(call.coef)
        for grad, row in zip(call.grads, call.rows, strict=True):
            self._rows[row.parameter] = ((id(grad), grad._version), row)
        for row in call.rows:
            row.threshold = call.max_norm
        call.grads, call.before = [], []
        self.waiting.append(call)
        del self.waiting[:-MOST_WAITING]

    def remember(self, parameter: torch.Tensor, row: Row) -> None:
        """Keep figures that were read elsewhere, for the clip call that may follow."""
        grad = parameter.grad
        if grad is not None:
            self._rows[id(parameter)] = ((id(grad), grad._version), row)

    def valid(self, parameter: torch.Tensor) -> Row | None:
        """The figures before clipping, where nothing has touched the gradient since."""
        found = self._rows.get(id(parameter))
        if found is None:
            return None
        grad = parameter.grad
        if grad is None or found[0] != (id(grad), grad._version):
            return None
        return found[1]

    def rescaled(self, parameters: Sequence[torch.Tensor], unscale: Callable[[], Any]) -> Any:
        """Run a `GradScaler.unscale_`, and keep figures of gradients that it divides valid."""
        kept = [(p, row) for p in parameters if (row := self.valid(p)) is not None]
        scale = self._scale_of([p for p, _ in kept]) if kept else None
        result = unscale()
        for parameter, row in kept:
            grad = parameter.grad
            if grad is not None and scale is not None:
                row.unscale(scale)
                self._rows[id(parameter)] = ((id(grad), grad._version), row)
        return result

    def stepped(self, parameters: Sequence[torch.Tensor]) -> list[ClipCall]:
        """An optimizer steps: forget its figures, and return its calls since the last step."""
        now = self._backwards()
        own = set(map(id, parameters))
        if self._rows:  # ids may be used again: no row outlives its step
            for each in own:
                self._rows.pop(each, None)
        for clock in (*self._clocks_of(parameters), self._any):
            clock.step, clock.stepped, clock.clips = now, True, 0
        if not self.waiting:
            return []
        calls = [call for call in self.waiting if call.concerns(own)]
        self.waiting = [call for call in self.waiting if not call.concerns(own)]
        return calls

    def _place(self, call: ClipCall, owners: Sequence[torch.Tensor]) -> None:
        now = self._backwards()
        clocks = [self._any]
        if call.of_parameters:
            clocks = self._clocks_of(owners)
        first = clocks[0]
        call.backward_since_step = now - first.step
        call.backward_since_clip = now - max(first.clip, first.step)
        call.repeated = first.clips
        call.after_step = first.stepped and now == first.step
        for clock in clocks:
            clock.clip, clock.clips = now, clock.clips + 1

    def _clocks_of(self, parameters: Sequence[torch.Tensor]) -> list[Clock]:
        ids, clocks = list(map(id, parameters)), self._clocks
        clocks.update((each, Clock()) for each in ids if each not in clocks)
        return [clocks[each] for each in ids]

    def _read(self, held: Sequence[torch.Tensor], norm_type: float) -> list[Row]:
        known = [self.valid(p) for p in held]
        unknown = [p for p, row in zip(held, known, strict=True) if row is None]
        fresh = iter(rows_of(unknown, norm_type))
        return [row if row is not None else next(fresh) for row in known]


def torch_coefficient(max_norm: Any, total_norm: Any) -> Any:
    """What torch multiplies gradients by: its 1e-6 included, 0 for an infinite norm.

    Example:
        >>> torch_coefficient(1.0, torch.tensor(4.0)), torch_coefficient(1.0, torch.tensor(0.5))
        (0.24999994039..., 1.0)
    """
    if isinstance(total_norm, torch.Tensor):
        coef = torch.clamp(max_norm / (total_norm + 1e-6), max=1.0)
        return float(coef) if coef.device.type == "cpu" else coef.detach()
    return min(1.0, float(max_norm) / (float(total_norm) + 1e-6))


def _note_clamped(call: ClipCall) -> None:
    changed = [i for i, before in enumerate(call.before) if before is not None]
    if not changed:
        return
    after = kernels.read([call.grads[i] for i in changed], call.norm_type)
    for place, index in enumerate(changed):
        before = call.before[index]
        assert before is not None
        inner = torch.sum(before.double() * call.grads[index].double())
        on_cpu = inner.device.type == "cpu"
        call.rows[index].clamp(after.norms[place], float(inner) if on_cpu else inner)
    left = [row.left for row in call.rows]
    call.coef = _ratio(left, [row.norm for row in call.rows], call.norm_type)


def _total(rows: Sequence[Row], p: float) -> Any:
    if not rows:
        return 0.0
    if any(isinstance(row.norm, torch.Tensor) for row in rows):
        return torch.linalg.vector_norm(torch.stack([row.norm for row in rows]), p)
    return float(np.linalg.norm([row.norm for row in rows], p))


def _ratio(left: list[Any], before: list[Any], p: float) -> Any:
    if any(isinstance(value, torch.Tensor) for value in before):
        return torch.linalg.vector_norm(torch.stack(left), p) / torch.linalg.vector_norm(
            torch.stack(before), p
        )
    return float(np.linalg.norm(left, p) / np.linalg.norm(before, p))
