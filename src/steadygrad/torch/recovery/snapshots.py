"""What a training may go back to: snapshots of sound steps, in memory and on disk."""

from __future__ import annotations

import time
from typing import Any

import torch

from steadygrad.errors import SteadyGradWarning
from steadygrad.recovery.batches import FILE, LeftOut
from steadygrad.recovery.ladder import Ladder
from steadygrad.recovery.memory import half_of_memory
from steadygrad.recovery.ring import Ring, SnapshotPace, StoredSnapshot
from steadygrad.runlog.notice import warn
from steadygrad.torch.distributed.board import is_job
from steadygrad.torch.gradients.parameters import parameters_of
from steadygrad.torch.gradients.pieces import local
from steadygrad.torch.internals.warn import warn_user
from steadygrad.torch.recovery.agreement import largest, smallest
from steadygrad.torch.recovery.beside_state import put_back_beside
from steadygrad.torch.recovery.buffers import Buffers, all_finite, modules_of
from steadygrad.torch.recovery.displacement import Displacement
from steadygrad.torch.recovery.generators import Generators, generators, set_generators
from steadygrad.torch.recovery.on_disk import SnapshotFolder
from steadygrad.torch.recovery.partners import Partners
from steadygrad.torch.recovery.training_state import (
    TrainingState,
    in_host_memory,
    restore_weights,
    state_tensors,
    tensors_of,
)
from steadygrad.torch.step.clipper import Memory
from steadygrad.torch.step.inner import inner_optimizers
from steadygrad.torch.step.snapshot import Snapshot

STATES = 2
"""Copies of the weights that an optimizer's state is taken to be, before it is there."""


class Snapshots:
    """Takes snapshots of one optimizer's training when they are due, and puts them back.

    Args:
        ladder: how many, how often, and in which folder.
        optimizer: whose training.
        model: whose buffers are put back too; None for the modules that hold the parameters.
        memory: the clip policy's state.
        index: number of the optimizer within the run.

    Raises:
        UsageError: the snapshots do not fit the memory budget.

    Attributes:
        partners: schedulers, scaler and what else is saved and put back.
        left_out: batches that are not to be used again.
        disk: where snapshots are written too.
        buffers: of the model.
        displacement: how far the weights move from one snapshot to the next.
    """

    def __init__(
        self,
        ladder: Ladder,
        optimizer: torch.optim.Optimizer,
        model: torch.nn.Module | None,
        memory: Memory,
        index: int,
    ) -> None:
        params = parameters_of(optimizer)
        self._ladder, self._memory = ladder, memory
        self._ring: Ring[TrainingState] = Ring(ladder.keep, ladder.memory or half_of_memory())
        if ladder.rollback:
            size = sum(p.numel() * p.element_size() for p in local(params))
            self._ring.require_room(size * (1 + STATES))
        self._pace = SnapshotPace(ladder.stride)
        self.displacement = Displacement()
        self.buffers = Buffers(modules_of(model, params))
        self.partners = Partners()
        self.disk = SnapshotFolder(ladder.folder, index, ladder.keep)
        self.left_out = LeftOut(self.disk.whole / FILE if self.disk.whole else None)
        self._candidate: TrainingState | None = None
        self._generators: Generators | None = None
        self._searches = 2  # a scheduler may be made after the first step

    def newest(self, until: int) -> StoredSnapshot[TrainingState] | None:
        """The newest one of a step or before."""
        return self._ring.newest(until)

    def is_due(self, step: int) -> bool:
        """Whether one is to be taken before this step."""
        return bool(self._ladder.rollback) and self._pace.due(step)

    # -- one step ----------------------------------------------------------------------------

    def before_closure(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """A step with a closure begins: the optimizer may move weights before it evaluates it."""
        if self.is_due(step):
            self._find_partners(optimizer)
            self._candidate = self._capture(optimizer)

    def take(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """One of the step under way, if all that it holds is sound on all ranks."""
        started = time.perf_counter()
        device = parameters_of(optimizer)[0].device
        state = self._sound_state(optimizer)
        if is_job() and not smallest(int(state is not None), device):
            state = None  # a snapshot that one rank lacks is none
        if state is not None:
            self._learn_move(optimizer, step)
            self._ring.add(step, state, state.weights.size)
            self.disk.write(optimizer, step, state, self.partners.named)
        self._pace.taken(step, time.perf_counter() - started)
        if is_job() and not self._ladder.stride:
            self._pace.agree(step, largest(self._pace.stride, device))

    def step_judged(self) -> None:
        """What was copied before the step's closure is of no more use."""
        self._candidate = None

    def step_ends(self, step: int) -> None:
        """The step of this number is over."""
        self.left_out.write_when_due()
        self._pace.step_ends(time.perf_counter())
        self._generators = generators() if self.is_due(step + 1) else None

    def _sound_state(self, optimizer: torch.optim.Optimizer) -> TrainingState | None:
        """What the step began with; None where that is not sound, or cannot be copied."""
        try:
            self._find_partners(optimizer)
            state = self._candidate or self._capture(optimizer)
            sound = self._is_sound(optimizer, state)
        except Exception as error:  # no memory, a scheduler that cannot be copied: training goes on
            warn(f"recover: no snapshot was taken: {error!r}", SteadyGradWarning)
            return None
        return state if sound else None

    def _is_sound(self, optimizer: torch.optim.Optimizer, state: TrainingState) -> bool:
        """Whether no weight, state, buffer or average in a snapshot is a NaN or inf."""
        every = (optimizer, *inner_optimizers(optimizer))
        tensors = [t for each in every for t in (*parameters_of(each), *state_tensors(each))]
        if self._candidate is not None:  # the optimizer may have moved them since
            tensors = [*tensors, *state.weights.copies()]
        averages = tensors_of(state.partners)
        return (
            all_finite(tensors)
            and self.buffers.are_sound(state.buffers)
            and not any(bool(each.isnan().any()) for each in averages)
        )

    def _find_partners(self, optimizer: torch.optim.Optimizer) -> None:
        if self._searches:
            self._searches -= 1
            self.partners.find(optimizer)

    def _learn_move(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        last = self._ring.newest(step)
        if last is not None:
            weights = last.content.weights
            self.displacement.learn(weights, parameters_of(optimizer), step - last.step)

    def _capture(self, optimizer: torch.optim.Optimizer) -> TrainingState:
        return TrainingState(
            Snapshot(optimizer, copy=in_host_memory),
            self.buffers.copies(),
            self.partners.states(),
            self._memory.export(),
            self._generators,
            self.left_out.position - 1 if self.left_out.heeded else -1,
        )

    # -- going back --------------------------------------------------------------------------

    def put_back(self, optimizer: torch.optim.Optimizer, state: TrainingState) -> None:
        """The training goes on from here."""
        self.partners.restore(state.partners)
        restore_weights(optimizer, state.weights)
        self.buffers.put_back(state.buffers)
        self.buffers.note()
        self._memory.load(state.policy)

    def rolled_back(self, step: int, to_step: int) -> None:
        """Drop those of steps that were taken back.

        Args:
            step: the last one taken back.
            to_step: of the snapshot that was put back.
        """
        self._ring.drop_after(to_step)
        self.disk.drop_after(to_step)
        self._pace.agree(step, self._pace.stride)

    def restore_newest(self, optimizer: torch.optim.Optimizer, folder: str | None) -> int | None:
        """Put back the newest snapshot in a folder that is whole.

        Args:
            optimizer: made as it was when that was written.
            folder: where it is; None for the ladder's own.

        Returns:
            The step to go on with; None where there is no snapshot.

        Raises:
            UsageError: no folder is known, or what was saved is of other weights.
        """
        snapshot = self.disk.restore(optimizer, folder)
        if snapshot is None:
            return None
        step, saved = snapshot
        self.partners.find(optimizer)
        missing = self.partners.restore(saved["partners"])
        _put_learning_rates(optimizer, saved["optimizer"])
        not_placed = put_back_beside(optimizer, saved.get("beside", ()))
        self.buffers.put_back(saved["buffers"])
        self.buffers.note()
        self._memory.load(saved["policy"])
        missing += self._restore_generators(saved["generators"])
        if missing:
            warn_user(
                f"restored step {step}, but not {', '.join(missing)}: tell "
                "steady.remember(name=object) of them before restore()",
                SteadyGradWarning,
            )
        if not_placed:
            warn_user(
                f"restored step {step}, but not {', '.join(not_placed)}: the "
                f"{type(optimizer).__name__} that was made now has no such place, or another",
                SteadyGradWarning,
            )
        self.left_out.position = int(saved["batch"])
        return step

    def _restore_generators(self, saved: Generators | None) -> list[str]:
        """Put random generators back; which of them could not be."""
        if saved is None:
            return ["random generators"]
        set_generators(saved)
        self._generators = saved
        if saved["numpy"] is None:
            return ["NumPy's random generator, which is not its own"]
        return []

    def close(self) -> None:
        """Write what is still to be written."""
        self.disk.close()
        self.left_out.write()


def _put_learning_rates(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """A scheduler that is restored may write its own; the optimizer's are those of the step."""
    for group, old in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        group.update({key: value for key, value in old.items() if key != "params"})
