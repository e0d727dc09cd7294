"""Loops that update weights by hand, without an optimizer object.

Nothing calls us when such a loop updates. After each backward the gradients are read;
when the next backward finds them gone or zero and the weights changed, that was a
step. Accumulation is right, since there gradients are still there. Parameters that
an optimizer holds never come here.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from steadygrad.kernels import native
from steadygrad.kernels.native import Stamped
from steadygrad.runlog.records import TensorInfo
from steadygrad.torch.clip_calls.clips import ClipLog
from steadygrad.torch.clip_calls.readings import GradientReading, read
from steadygrad.torch.gradients.batch import GradientBatch
from steadygrad.torch.gradients.outcome import PassedStep
from steadygrad.torch.record.journal import hand_over, number, record_of, seal
from steadygrad.torch.record.recording import OptimizerRecorder
from steadygrad.torch.record.sealed import MeasuredStep
from steadygrad.torch.step.observing import Clipper, StepOutcome, summed_up

PROBE = 32
"""Elements of a leaf by which it is told whether it was moved."""

Probe = tuple[weakref.ref[torch.Tensor], int, int, bytes | None]
"""A leaf, its version, where a few of its elements begin (`SPREAD` for here and there), and these;
None where they are on a device."""
SPREAD = -1
MOST_HELD = 8
"""So many steps are held back at most."""


@dataclass
class Pending:
    """The gradients of the last backward, until it is known whether they were applied.

    Leaves that an earlier step showed to be weights are held, so that the last step of a
    loop in a function that has returned can still be told. What `torch.autograd.grad` has
    ``returned`` stands in no ``.grad``; where several calls of it were ``summed`` before the
    weights moved, nobody knows how.
    """

    leaves: list[weakref.ref[torch.Tensor]]
    reading: GradientReading
    loss: Any
    probe: list[Probe]
    weights: list[torch.Tensor]
    outcome: StepOutcome | None = None
    returned: bool = False
    summed: bool = False


class ManualLoop(Stamped):
    """Finds the steps of a loop that updates by hand.

    Attributes:
        steps: how many were found.
        taken_from_calls: how many of them from gradients that `torch.autograd.grad` returned.
        unread: how many more, whose gradients are sums that only the script knows.
        index: number of this loop among the run's optimizers.
        pending: gradients that wait for an update by hand; None for none.
        holds: an optimizer that is not torch's may yet be met: the first steps are held back, since
            such a loop may move its weights to another point, as SAM does, before that steps.

    Args:
        log: the script's clip calls.
        describe: gives names to parameters, ``{id: description}``.
        recorder: opens the run file, or gives None.
        stepped: told of a finished step's number and parameters, before it is recorded.
        clipper: replaces the script's clip calls; None leaves them.
    """

    def __init__(
        self,
        log: ClipLog,
        describe: Callable[[list[torch.Tensor]], dict[int, TensorInfo]],
        recorder: Callable[[], OptimizerRecorder | None],
        stepped: Callable[[int, list[torch.Tensor]], None],
        clipper: Clipper | None,
    ) -> None:
        self.steps = self.unread = self.taken_from_calls = 0
        self._log, self._describe, self._recorder = log, describe, recorder
        self._stepped, self._clipper = stepped, clipper
        self.pending: Pending | None = None
        self._leaf_refs: dict[int, weakref.ref[torch.Tensor]] = {}
        self._inputs: set[int] = set()
        self._infos: dict[int, TensorInfo] = {}
        self._announced: list[int] = []
        self._open: OptimizerRecorder | None = None
        self.index = 0
        self.holds = False
        self._undecided: list[tuple[Pending, set[int]]] = []
        self._of_others: dict[int, weakref.ref[torch.Tensor]] = {}

    def before_backward(self, leaves: Sequence[torch.Tensor]) -> None:
        """A backward is about to reach these leaves, which no optimizer holds."""
        pending = self.pending
        if pending is not None and _was_reset(pending):
            self._commit_if_updated(pending, {id(leaf) for leaf in leaves})
            self.pending = None
        self._leaf_refs = {id(leaf): weakref.ref(leaf) for leaf in leaves}

    def after_backward(self, loss: object) -> None:
        """That backward is done: read what it left."""
        leaves = [leaf for ref in self._leaf_refs.values() if (leaf := ref()) is not None]
        with_gradients = [leaf for leaf in leaves if leaf.grad is not None]
        if not with_gradients:
            return
        reading = read(with_gradients, 2.0)
        self._log.remember(reading)
        if not self.steps:
            self._inputs.update(reading.ids)
        self.pending = Pending(
            leaves=[weakref.ref(leaf) for leaf in with_gradients],
            reading=reading,
            loss=loss,
            probe=[_probe(leaf, leaf.grad) for leaf in with_gradients[-2:]],
            weights=[leaf for leaf in with_gradients if id(leaf) in self._announced],
        )

    def differentiated(
        self, leaves: Sequence[torch.Tensor], grads: Sequence[torch.Tensor], loss: object
    ) -> None:
        """`torch.autograd.grad` has returned gradients of leaves that no optimizer holds."""
        pending, summed = self.pending, False
        if pending is not None:
            summed = pending.returned and not _was_updated(pending)
            self._commit_if_updated(pending, {id(leaf) for leaf in leaves})
        self._leaf_refs = {id(leaf): weakref.ref(leaf) for leaf in leaves}
        self.pending = Pending(
            leaves=[weakref.ref(leaf) for leaf in leaves],
            reading=read(leaves, 2.0, grads),
            loss=loss,
            probe=[_probe(*each) for each in list(zip(leaves, grads, strict=True))[-2:]],
            weights=[leaf for leaf in leaves if id(leaf) in self._announced],
            returned=True,
            summed=summed,
        )

    def forget(self, parameters: Iterable[torch.Tensor]) -> None:
        """An optimizer has stepped on these: their gradients were no update by hand."""
        if self.pending is not None and any(id(p) in self._leaf_refs for p in parameters):
            self.pending = None

    def leave_to_others(self, parameters: Sequence[torch.Tensor]) -> None:
        """An optimizer that is not torch's steps on these: what else moves them takes no step."""
        self.forget(parameters)
        self._undecided = [each for each in self._undecided if not _is_of(each[0], parameters)]
        if any(map(self._is_own, parameters)):
            self._of_others.update((id(p), weakref.ref(p)) for p in parameters)

    def _is_own(self, parameter: torch.Tensor) -> bool:
        """Whether no optimizer elsewhere is known to move it."""
        ref = self._of_others.get(id(parameter))
        return ref is None or ref() is not parameter

    def rest(self) -> None:
        """Let go of gradients that were read before the first step: of inputs, as it seems now."""
        self.pending = None
        self._log.drop(self._inputs)
        self._inputs = set()

    def waiting(self) -> tuple[list[torch.Tensor], list[int]]:
        """The leaves whose gradients wait to be applied, and their non-finite elements."""
        if self.pending is None:
            return [], []
        pairs = zip(self.pending.leaves, self.pending.reading.nonfinite.tolist(), strict=False)
        alive = [(leaf, count) for ref, count in pairs if (leaf := ref()) is not None]
        return [leaf for leaf, _ in alive], [count for _, count in alive]

    @property
    def param_groups(self) -> list[dict[str, list[torch.Tensor]]]:
        """The leaves of the last backward, as an optimizer lists what it moves."""
        leaves = [leaf for ref in self._leaf_refs.values() if (leaf := ref()) is not None]
        return [{"params": leaves}]

    def owns(self, parameters: Sequence[torch.Tensor]) -> bool:
        """Whether gradients of these are waiting for an update by hand."""
        pending = self.pending
        if pending is None or pending.returned:
            return False
        return any(id(p) in self._leaf_refs for p in parameters)

    def act(self, parameters: Sequence[torch.Tensor]) -> None:
        """Clip these parameters' gradients by our policy, where the script would have."""
        with_gradients = [p for p in parameters if p.grad is not None]
        if self.pending is None or self._clipper is None or not with_gradients:
            return
        batch = self._batch(with_gradients)
        outcome = self._clipper.process(batch, self.steps)
        if outcome.skip:
            for grad in batch.grads:
                grad.zero_()
        self.pending.outcome = outcome
        self.pending.leaves = [weakref.ref(p) for p in with_gradients]

    def finish(self) -> None:
        """The script is over: the last backward has no successor."""
        if self.pending is not None and (self.steps or self._undecided):
            self._commit_if_updated(self.pending, set(self._leaf_refs))
        self.pending = None
        self._release()

    def _release(self) -> None:
        """What was held back were steps."""
        self.holds, undecided, self._undecided = False, self._undecided, []
        for pending, current in undecided:
            self._commit(pending, current)

    def _batch(self, leaves: list[torch.Tensor]) -> GradientBatch:
        self._describe_all(leaves)
        return GradientBatch(
            grads=[leaf.grad for leaf in leaves if leaf.grad is not None],
            params=leaves,
            names=tuple(self._infos[id(leaf)].name for leaf in leaves),
            sizes=tuple(leaf.numel() for leaf in leaves),
        )

    def _describe_all(self, leaves: list[torch.Tensor]) -> None:
        unknown = [leaf for leaf in leaves if id(leaf) not in self._infos]
        if unknown:
            self._infos.update(self._describe(unknown))

    def _commit_if_updated(self, pending: Pending, current: set[int]) -> None:
        if not _was_updated(pending):
            return
        moved = [leaf for ref in pending.leaves if (leaf := ref()) is not None]
        if not all(map(self._is_own, moved)):
            self._stepped(self.steps, [])
            return
        if self.holds and len(self._undecided) < MOST_HELD:
            self._undecided.append((pending, current))
            self._stepped(self.steps, [])
            return
        self._release()
        self._commit(pending, current)

    def _commit(self, pending: Pending, current: set[int]) -> None:
        if pending.summed:
            self.unread += 1
            return
        weights = [
            (leaf, place)
            for place, ref in enumerate(pending.leaves)
            # inputs that need gradients are new at every step; weights stay
            if (leaf := ref()) is not None
            and (id(leaf) in current or isinstance(leaf, torch.nn.Parameter))
        ]
        if not weights:
            return
        leaves = [leaf for leaf, _ in weights]
        reading = pending.reading.part(i for _, i in weights)
        self.taken_from_calls += pending.returned
        self._open = self._open or self._recorder()
        self._stepped(self.steps, leaves)
        if self._open is not None:
            self._announce(self._open, leaves)
            self._record(self._open, pending, reading, leaves)
            self._open.sample(self.steps, leaves)
        self.steps += 1

    def _announce(self, file: OptimizerRecorder, leaves: list[torch.Tensor]) -> None:
        ids = list(map(id, leaves))
        if ids != self._announced:
            self._describe_all(leaves)
            infos = [replace(self._infos[key], optimizer=self.index) for key in ids]
            file.add_tensors(infos)
            self._announced = ids

    def _record(
        self,
        file: OptimizerRecorder,
        pending: Pending,
        reading: GradientReading,
        leaves: list[torch.Tensor],
    ) -> None:
        if pending.outcome is None and reading.sealed is not None and reading.is_usual:
            passed = PassedStep(reading.sealed, number(reading.threshold), reading.factor)
            facts = (self.steps, self.index, file.ids, reading.total, pending.loss, math.nan)
            seal(file, MeasuredStep, *facts, reading.sealed, passed)
            return
        outcome = pending.outcome or summed_up(reading, self._batch(leaves))
        record = record_of(self.steps, outcome, pending.loss, math.nan, optimizer=self.index)
        hand_over(file, record, outcome.stats, None)


def _is_of(pending: Pending, parameters: Sequence[torch.Tensor]) -> bool:
    ids = set(map(id, parameters))
    return any(id(ref()) in ids for ref in pending.leaves)


def _probe(leaf: torch.Tensor, grad: torch.Tensor | None) -> Probe:
    place = _place_to_look(leaf, grad) if leaf.is_cpu else SPREAD
    return weakref.ref(leaf), leaf._version, place, _elements(leaf, place)


def _place_to_look(leaf: torch.Tensor, grad: torch.Tensor | None) -> int:
    """Where an update shows: of an embedding, a batch moves a few rows only."""
    if grad is None or not grad.is_cpu:
        return SPREAD
    if grad.layout is torch.sparse_coo:
        return int(grad._indices()[0, 0]) * leaf[0].numel() if grad._nnz() else SPREAD
    parts = native.try_parts([grad], PROBE)
    if parts is None or parts.any() or grad.layout is not torch.strided:
        return SPREAD
    if grad.is_complex():
        return int(grad.abs().argmax())
    highest = int(grad.argmax())  # without a copy: it may be large
    return highest if grad.reshape(-1)[highest] else int(grad.argmin())


def _elements(leaf: torch.Tensor, place: int) -> bytes | None:
    """A few of a leaf's elements; None where to look at them could take long."""
    if not leaf.is_cpu:
        return None
    parts = native.try_parts([leaf], PROBE) if place == SPREAD else None
    if parts is not None:
        return parts.tobytes()
    first = max(place, 0)
    return repr(leaf.detach().reshape(-1)[first : first + PROBE].tolist()).encode()


def _was_updated(pending: Pending) -> bool:
    for ref, version, place, elements in pending.probe:
        leaf = ref()
        if leaf is None:
            continue
        # ``leaf.data.add_(...)`` leaves the version as it is
        if leaf._version != version or elements is None or _elements(leaf, place) != elements:
            return True
    return not pending.probe


def _was_reset(pending: Pending) -> bool:
    """Whether the gradients of that backward are gone, or zero."""
    if pending.returned:
        return True
    reading = pending.reading
    for place, ref in enumerate(pending.leaves):
        leaf = ref()
        if leaf is None or leaf.grad is None:
            return True
        top = reading.max_abs[place]  # its columns are opened here, in few loops
        if isinstance(top, torch.Tensor) or top > 0 or reading.nonfinite[place]:
            return not bool(leaf.grad.any())
    return False
