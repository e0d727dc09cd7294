"""Recovery of one optimizer's training: readings in, verdicts and snapshots out.

A step is judged when its gradients are measured, before its weights are written: what struck it
was computed with the weights as they are. A step that is found sound vouches for them, so that is
when a snapshot is taken. A rollback waits until the step is over.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from steadygrad.errors import SteadyGradWarning, UsageError
from steadygrad.recovery.batches import FILE, LeftOut
from steadygrad.recovery.events import (
    LOWER_RATE,
    PERSISTENT,
    RESTORE,
    SHRINK,
    TRANSIENT,
    RecoveryEvent,
)
from steadygrad.recovery.files import claim, drop_after, read_newest, release, write_snapshot
from steadygrad.recovery.judge import SOUND, Act, Judge, StepVerdict, given_up
from steadygrad.recovery.ladder import Ladder
from steadygrad.recovery.memory import half_of_memory
from steadygrad.recovery.ring import Ring, SnapshotPace, StoredSnapshot
from steadygrad.recovery.triggers import (
    DIVERGED,
    LASTING,
    NONFINITE,
    WEIGHTS,
    Fall,
    Reading,
)
from steadygrad.runlog.notice import warn
from steadygrad.torch.distributed.board import is_job
from steadygrad.torch.gradients.pieces import local
from steadygrad.torch.internals.warn import warn_user
from steadygrad.torch.recovery.again import StepAgain
from steadygrad.torch.recovery.agreement import (
    agreed,
    common_nature,
    common_newest,
    largest,
    smallest,
)
from steadygrad.torch.recovery.buffers import Buffers, all_finite, modules_of
from steadygrad.torch.recovery.displacement import FACTOR, Displacement
from steadygrad.torch.recovery.generators import Generators, generators, set_generators
from steadygrad.torch.recovery.partners import Partners
from steadygrad.torch.recovery.shards import as_pieces, as_tensors, meshes_of
from steadygrad.torch.recovery.training_state import (
    TrainingState,
    in_host_memory,
    load_portable,
    packed,
    portable,
    restore_weights,
    state_tensors,
    tensors_of,
    unpacked,
)
from steadygrad.torch.step.clipper import Memory
from steadygrad.torch.step.snapshot import Snapshot
from steadygrad.vocabulary import LADDER, RECOVERY, Nature

WriteEvent = Callable[[str, dict[str, Any], int | None], None]
_PARTS = frozenset({"weights", "optimizer", "buffers", "partners", "policy", "generators", "batch"})
"""What a snapshot on disk holds."""
STATES = 2
"""Copies of the weights that an optimizer's state is taken to be, before it is there."""


class Recovering:
    """Judges the steps of one optimizer, and keeps what it may go back to.

    Args:
        ladder: what may be done.
        optimizer: whose steps.
        model: whose buffers are put back too; None for the modules that hold the parameters.
        memory: the clip policy's state.
        write_event: takes what was done, for the run file.
        index: number of the optimizer within the run.

    Raises:
        UsageError: the snapshots do not fit the memory budget.

    Attributes:
        partners: schedulers, scaler and what else is saved and put back.
        left_out: batches that are not to be used again.
        acts: what was done so far.
    """

    def __init__(
        self,
        ladder: Ladder,
        optimizer: torch.optim.Optimizer,
        model: torch.nn.Module | None,
        memory: Memory,
        write_event: WriteEvent,
        index: int,
    ) -> None:
        params = _parameters(optimizer)
        self.partners = Partners()
        self.acts: list[RecoveryEvent] = []
        self._judge = Judge(ladder)
        self._ring: Ring[TrainingState] = Ring(ladder.keep, ladder.memory or half_of_memory())
        if ladder.rollback:
            size = sum(p.numel() * p.element_size() for p in local(params))
            self._ring.require_room(size * (1 + STATES))
        self._pace = SnapshotPace(ladder.stride)
        self.again = StepAgain(optimizer)
        self._displacement = Displacement()
        self._doubts = 0
        self._buffers = Buffers(modules_of(model, params))
        self._memory, self._write_event, self._index = memory, write_event, index
        self._folder = _own_folder(ladder.folder, index)
        claim(self._folder, self)
        self.left_out = LeftOut(self._folder.parent / FILE if self._folder else None)
        write_event(
            LADDER,
            {
                "ladder": ladder.spec(),
                "folder": str(self._folder.parent) if self._folder else "",
                "optimizer": index,
            },
            None,
        )
        self._candidate: tuple[int, TrainingState] | None = None
        self._generators: Generators | None = None
        self._rollback: StoredSnapshot[TrainingState] | None = None
        self._too_far = 1.0
        self._hot: tuple[float, list[float]] | None = None
        self._verdict = SOUND
        self._under_way: dict[str, int] = {}
        self._searches = 2  # a scheduler may be made after the first step
        self._writing: threading.Thread | None = None
        self._readable = False  # whether a snapshot was seen to be read again

    # -- one step ----------------------------------------------------------------------------

    def before_closure(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """A step with a closure begins: the optimizer may move weights before it evaluates it."""
        if self._judge.ladder.rollback and self._pace.due(step):
            self._find_partners(optimizer)
            self._candidate = step, self._capture(optimizer)

    def judge(
        self,
        optimizer: torch.optim.Optimizer,
        step: int,
        loss: Any,
        norm: Any,
        scaled: bool,
        dropped: bool,
    ) -> StepVerdict:
        """What to do with the step whose gradients have been measured.

        Args:
            optimizer: whose step.
            step: its number.
            loss: its loss, a number or a tensor; None where nobody knows it.
            norm: total norm before clipping.
            scaled: whether a GradScaler looks after overflows.
            dropped: whether the clip policy drops the step by itself.

        Raises:
            RecoveryError: the ladder has nothing left; weights are those of the last good step.
        """
        self._cool(optimizer, step)
        reading = self._reading(optimizer, step, loss, float(norm), scaled)
        verdict = self._verdict = self._judge.judge(
            reading,
            lambda: self._displaced(optimizer, step),
            lambda until, fall: self._regrets(optimizer, reading, until, fall),
        )
        nature = self._nature(optimizer, verdict)
        if verdict.act is Act.STOP or verdict.act is Act.ROLLBACK:
            self._go_back(optimizer, step, verdict, nature)
        elif verdict.trigger or verdict.act is Act.LEAVE_OUT:
            self._note(self._event(step, verdict.act, verdict.trigger, nature=nature))
            if verdict.drops and nature != TRANSIENT:
                batch = self.left_out.current(step)
                self.left_out.add(batch, batch)
        elif not dropped and math.isfinite(reading.norm):
            self._vouch(optimizer, step)
            self._once(LOWER_RATE, step, verdict.slow_until)
        self._candidate = None
        return verdict

    def shrunk(self, step: int, verdict: StepVerdict) -> None:
        """A gradient was held to the verdict's cap."""
        self._once(SHRINK, step, verdict.capped_until)

    def step_ends(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """The step of this number is over, and nothing of it is under way."""
        verdict, self._verdict = self._verdict, SOUND
        if verdict.drops:
            self._buffers.put_back()
        else:
            self._buffers.note()
        rollback, self._rollback = self._rollback, None
        if rollback is not None:
            self._restore(optimizer, rollback.content)
            self._rolled_back(step, rollback)
        self.left_out.write_when_due()
        self._pace.step_ends(time.perf_counter())
        due = self._judge.ladder.rollback and self._pace.due(step + 1)
        self._generators = generators() if due else None

    def close(self) -> None:
        """Wait for what is being written; look at no further step."""
        self.again.end()
        self._wait()
        self.left_out.write()
        release(self._folder, self)

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.join()

    # -- after a restart ---------------------------------------------------------------------

    def restore(self, optimizer: torch.optim.Optimizer, folder: str | None) -> int:
        """Put back the newest snapshot in a folder that is whole.

        Args:
            optimizer: made as it was when that was written.
            folder: where it is; None for the ladder's own.

        Returns:
            The step to go on with; 0 where there is no snapshot.

        Raises:
            UsageError: no folder is known, or what was saved is of other weights.
        """
        params = _parameters(optimizer)
        place = self._folder if folder is None else _own_folder(folder, self._index)
        if place is None:
            raise UsageError(
                "restore: no folder is known; type attach(..., recover='auto+snapshots:FOLDER')"
            )
        snapshot = self._agreed_newest(place, params)
        if snapshot is None:
            return 0
        try:
            saved = unpacked(snapshot[1])
        except ValueError as error:
            raise UsageError(
                f"restore: the snapshot of step {snapshot[0]} in {place} holds {error}, and no "
                "code in it is run: remove it, and an earlier one is taken"
            ) from None
        lacking = ", ".join(sorted(_PARTS - saved.keys()))
        if lacking:
            raise UsageError(
                f"restore: the snapshot of step {snapshot[0]} in {place} lacks {lacking}: remove "
                "it, and an earlier one is taken"
            )
        saved = as_tensors(saved, meshes_of(params))
        odd = load_portable(optimizer, _places(params), params, saved)
        if odd:
            raise UsageError(
                f"restore: {place} holds other weights than this optimizer, or weights that are "
                f"split over the ranks in another way: {', '.join(odd[:4])}"
            )
        self.partners.find(optimizer)
        missing = self.partners.restore(saved["partners"])
        _put_learning_rates(optimizer, saved["optimizer"])
        self._buffers.put_back(saved["buffers"])
        self._buffers.note()
        self._memory.load(saved["policy"])
        if saved["generators"] is None:
            missing.append("random generators")
        else:
            set_generators(saved["generators"])
            if saved["generators"]["numpy"] is None:
                missing.append("NumPy's random generator, which is not its own")
            self._generators = saved["generators"]
        drop_after(place, snapshot[0])
        if missing:
            warn_user(
                f"restored step {snapshot[0]}, but not {', '.join(missing)}: tell "
                "steady.remember(name=object) of them before restore()",
                SteadyGradWarning,
            )
        self._note(RecoveryEvent(snapshot[0], RESTORE, to_step=snapshot[0], optimizer=self._index))
        self.left_out.position = int(saved["batch"])
        return snapshot[0]

    def _agreed_newest(
        self, place: Path, params: Sequence[torch.Tensor]
    ) -> tuple[int, bytes] | None:
        newest = read_newest(place)
        if not is_job():
            return newest
        common = common_newest(newest, lambda until: read_newest(place, until), params[0].device)
        if common is None and newest is not None:
            warn_user(
                f"nothing was restored: {place} holds step {newest[0]}, but there is no step of "
                "which every rank has a snapshot",
                SteadyGradWarning,
            )
        return common

    # -- what the above are made of ----------------------------------------------------------

    def _reading(
        self, optimizer: torch.optim.Optimizer, step: int, loss: object, norm: float, scaled: bool
    ) -> Reading:
        value = _number(loss)
        finite = math.isfinite(norm)
        loss_finite = value is None or math.isfinite(value)
        weights = True
        if not (finite and loss_finite):
            weights = all_finite(_parameters(optimizer))
        reading = Reading(
            step,
            math.nan if value is None else value,
            norm if finite else math.nan,
            loss_finite,
            finite or scaled,
            weights,
            not self._buffers.jumped(),
        )
        return agreed(reading, _parameters(optimizer)[0].device) if is_job() else reading

    def _vouch(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """The step is sound, and so are the weights that it was computed with."""
        ladder = self._judge.ladder
        if not ladder.rollback or not self._pace.due(step):
            return
        if self._judge.suspects or self._is_doubtful(optimizer, step):
            return
        started = time.perf_counter()
        state = self._sound_state(optimizer)
        if is_job() and not smallest(int(state is not None), _parameters(optimizer)[0].device):
            state = None  # a snapshot that one rank lacks is none
        if state is not None:
            self._learn_move(optimizer, step)
            self._ring.add(step, state, state.weights.size)
            if self._folder is not None:
                self._write(optimizer, step, state)
        self._pace.taken(step, time.perf_counter() - started)
        if is_job() and not ladder.stride:
            self._pace.agree(step, largest(self._pace.stride, _parameters(optimizer)[0].device))

    def _sound_state(self, optimizer: torch.optim.Optimizer) -> TrainingState | None:
        """What the step began with; None where that is not sound, or cannot be copied."""
        taken = self._candidate
        try:
            self._find_partners(optimizer)
            state = self._capture(optimizer) if taken is None else taken[1]
            sound = self._is_sound(optimizer, state)
        except Exception as error:  # no memory, a scheduler that cannot be copied: training goes on
            warn(f"recover: no snapshot was taken: {error!r}", SteadyGradWarning)
            return None
        return state if sound else None

    def _is_sound(self, optimizer: torch.optim.Optimizer, state: TrainingState) -> bool:
        """Whether no weight, state, buffer or average in a snapshot is a NaN or inf."""
        tensors = [*_parameters(optimizer), *state_tensors(optimizer)]
        if self._candidate is not None:  # the optimizer may have moved them since
            tensors = [*tensors, *state.weights.copies()]
        averages = tensors_of(state.partners)
        return (
            all_finite(tensors)
            and self._buffers.are_sound(state.buffers)
            and not any(bool(each.isnan().any()) for each in averages)
        )

    def _is_doubtful(self, optimizer: torch.optim.Optimizer, step: int) -> bool:
        """Weights that have just jumped are good only once more steps have been sound."""
        doubtful = self._doubts < 2 * LASTING and self._displaced(optimizer, step) is True
        self._doubts = self._doubts + 1 if doubtful else 0
        return doubtful

    def _find_partners(self, optimizer: torch.optim.Optimizer) -> None:
        if self._searches:
            self._searches -= 1
            self.partners.find(optimizer)

    def _learn_move(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        last = self._ring.newest(step)
        if last is not None:
            weights = last.content.weights
            self._displacement.learn(weights, _parameters(optimizer), step - last.step)

    def _displaced(self, optimizer: torch.optim.Optimizer, step: int) -> bool | None:
        """Whether weights have moved further than usual since the last snapshot, on any rank."""
        last = self._ring.newest(step)
        if last is None:
            return None
        params, weights = _parameters(optimizer), last.content.weights
        unusual = self._displacement.is_unusual(weights, params, step - last.step)
        if is_job():
            code = largest(-1 if unusual is None else int(unusual), params[0].device)
            return None if code < 0 else bool(code)
        return unusual

    def _regrets(
        self, optimizer: torch.optim.Optimizer, reading: Reading, until: int, fall: Fall
    ) -> bool | None:
        """Whether a snapshot's weights would have done better on this very batch, on all ranks."""
        last = self._ring.newest(until)
        if last is None:
            return None
        weights, params = last.content.weights, _parameters(optimizer)
        far = self._displacement.ratio(weights, params, reading.step - last.step)
        losses = self.again.losses(weights)
        gain = math.nan
        if losses is not None:
            now, then = losses
            unit = now / reading.loss if reading.loss else 1.0  # a loss scale, or parts of a loss
            gain = (now - then) / unit if unit > 0 else math.nan
        better = gain >= fall.lost / 2 and (fall.over_start or (far or 0.0) > FACTOR)
        if is_job():
            better = bool(smallest(int(better), params[0].device))
        if better:
            self._too_far = max(far or 1.0, 2.0)
        return better

    def _capture(self, optimizer: torch.optim.Optimizer) -> TrainingState:
        return TrainingState(
            Snapshot(optimizer, copy=in_host_memory),
            self._buffers.copies(),
            self.partners.states(),
            self._memory.export(),
            self._generators,
            self.left_out.position - 1 if self.left_out.heeded else -1,
        )

    def _restore(self, optimizer: torch.optim.Optimizer, state: TrainingState) -> None:
        self.partners.restore(state.partners)
        restore_weights(optimizer, state.weights)
        self._buffers.put_back(state.buffers)
        self._buffers.note()
        self._memory.load(state.policy)

    def _nature(
        self, optimizer: torch.optim.Optimizer, verdict: StepVerdict
    ) -> Nature | Literal[""]:
        """Whether a NaN comes back when the step is run again; empty where there is none."""
        if verdict.trigger not in NONFINITE:
            return ""
        nature = PERSISTENT if verdict.trigger == WEIGHTS else self.again.nature()
        return common_nature(nature, _parameters(optimizer)[0].device) if is_job() else nature

    def _go_back(
        self, optimizer: torch.optim.Optimizer, step: int, verdict: StepVerdict, nature: str
    ) -> None:
        snapshot = self._ring.newest(verdict.until)
        stops = verdict.act is Act.STOP or snapshot is None
        to = None if snapshot is None else snapshot.step
        act = Act.STOP if stops else Act.ROLLBACK
        self._note(self._event(step, act, verdict.trigger, to, nature))
        if not stops and snapshot is not None:
            self._rollback = snapshot
            if verdict.trigger == DIVERGED:
                self._hot = self._too_far, _rates(optimizer)
            return
        if snapshot is not None:
            self._restore(optimizer, snapshot.content)
        raise given_up(step, verdict, to)

    def _cool(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Lower a rate that led astray, unless going back has put back the one before it."""
        if self._hot is None:
            return
        (too_far, hot), self._hot = self._hot, None
        now = _rates(optimizer)
        share = max((a / b for a, b in zip(now, hot, strict=True) if b), default=1.0)
        self._judge.slow_down(step, too_far * share)

    def _rolled_back(self, step: int, snapshot: StoredSnapshot[TrainingState]) -> None:
        self._ring.drop_after(snapshot.step)
        if self._folder is not None:
            self._wait()
            drop_after(self._folder, snapshot.step)
        self._judge.rolled_back(step, snapshot.step)
        heeded = self.left_out.heeded
        first = snapshot.content.batch if heeded else snapshot.step
        self.left_out.add(max(first, 0), self.left_out.current(step))
        if heeded:
            self.left_out.pending, self._judge.leave_out = self._judge.leave_out, 0
        self._pace.agree(step, self._pace.stride)

    def _write(self, optimizer: torch.optim.Optimizer, step: int, state: TrainingState) -> None:
        """On disk too, by a thread; not while an earlier one is being written."""
        params = _parameters(optimizer)
        busy = self._writing is not None and self._writing.is_alive()
        if largest(int(busy), params[0].device) if is_job() else busy:
            return  # on all ranks: a step that one of them lacks is no snapshot
        try:
            content = portable(optimizer, _places(params), params, state.weights) | {
                "buffers": state.buffers,
                "partners": state.partners,
                "policy": state.policy,
                "generators": state.generators,
                "batch": state.batch if state.batch >= 0 else step,
            }
            content = as_pieces(content, meshes_of(params))
        except Exception as error:  # a state that cannot be copied: training goes on
            warn(f"recover: no snapshot was written: {error!r}", SteadyGradWarning)
            return
        folder, keep = self._folder, self._judge.ladder.keep
        assert folder is not None

        def write() -> None:
            try:
                data = packed(content)
                self._require_readable(data)
                write_snapshot(folder, step, data, keep)
            except Exception as error:  # a full disk must not end a training
                warn_user(f"no snapshot was written to {folder}: {error}", SteadyGradWarning)

        self._writing = threading.Thread(target=write, name="steadygrad-snapshot")
        self._writing.start()

    def _require_readable(self, data: bytes) -> None:
        """Refuse snapshots that could not be read again; the first one tells of all."""
        if self._readable:
            return
        try:
            unpacked(data)
        except ValueError as error:
            raise UsageError(
                f"it holds {error}, and could not be read again. See what state_dict() gives of: "
                f"{', '.join(self.partners.named)}"
            ) from None
        self._readable = True

    def _once(self, act: str, step: int, until: int) -> None:
        """Write an event where its cause begins, and not again while that goes on."""
        if step > self._under_way.get(act, -1) and until >= step:
            self._note(RecoveryEvent(step, act, until=until, optimizer=self._index))
            self._under_way[act] = until

    def _event(
        self, step: int, act: Act, trigger: str, to_step: int | None = None, nature: str = ""
    ) -> RecoveryEvent:
        return RecoveryEvent(step, act.value, trigger, to_step, None, nature, self._index)

    def _note(self, act: RecoveryEvent) -> None:
        self.acts.append(act)
        self._write_event(RECOVERY, dict(act.as_json()), act.step)


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [float(group.get("lr", 1.0)) for group in optimizer.param_groups]


def _places(params: Sequence[torch.Tensor]) -> list[str]:
    return [f"parameter {index}" for index in range(len(params))]


def _own_folder(folder: str, index: int) -> Path | None:
    """This rank's and optimizer's part of a folder; None where none was named."""
    if not folder:
        return None
    whole = Path(folder).absolute()
    rank = f"rank-{torch.distributed.get_rank() if is_job() else 0}"
    return whole / (f"{rank}-optimizer-{index}" if index else rank)


def _put_learning_rates(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """A scheduler that is restored may write its own; the optimizer's are those of the step."""
    for group, old in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        group.update({key: value for key, value in old.items() if key != "params"})


def _number(loss: Any) -> float | None:
    """A loss; None where it is not known, or is no single number."""
    try:
        return None if loss is None else float(loss)
    except (TypeError, ValueError, RuntimeError):
        return None
