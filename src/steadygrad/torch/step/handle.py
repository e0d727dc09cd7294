"""The handle that `attach` returns: hooks around one optimizer's step.

The pre-hook measures, decides and acts, before the optimizer reads a gradient. A step
that must be dropped is handed a `self` without parameters (see `skipping`); a step
with a closure gets one whose first value is known already, because the gradients
to clip are made inside it (see `closures`).
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar, overload

import torch

from steadygrad.errors import AttachError, UsageError
from steadygrad.live.handle import Handle
from steadygrad.live.session import is_interactive, say_detached
from steadygrad.policies import NoClip, Policy
from steadygrad.recovery.events import RecoveryEvent
from steadygrad.recovery.ladder import Ladder
from steadygrad.recovery.resuming import take
from steadygrad.runlog.origin import Origin
from steadygrad.runlog.records import StepRecord
from steadygrad.runlog.writer import RunWriter
from steadygrad.stats import GradientStats
from steadygrad.torch.clip_calls.attached import AttachedClips, reading_of
from steadygrad.torch.distributed.ownership import Groups
from steadygrad.torch.internals import scaler
from steadygrad.torch.internals.eager import eager
from steadygrad.torch.internals.private import give_hooks
from steadygrad.torch.internals.quiet import quiet_call, quiet_step
from steadygrad.torch.loop.attached import AttachedLoop
from steadygrad.torch.record import losses
from steadygrad.torch.recovery.partners import Stateful
from steadygrad.torch.recovery.recovering import Recovering
from steadygrad.torch.step import copies
from steadygrad.torch.step.clipper import Clipper
from steadygrad.torch.step.closures import Arguments
from steadygrad.torch.step.engine import Engine
from steadygrad.torch.step.inner import holds_parameters_of, steps_running
from steadygrad.torch.step.naming import Names
from steadygrad.torch.step.observed import ObservingClipper
from steadygrad.torch.step.skipping import by_shadow
from steadygrad.typing import internal
from steadygrad.vocabulary import OnNonfinite

Batch = TypeVar("Batch")


class Steady(Handle):
    """Clipping, guarding and recording attached to one optimizer.

    Made by `steadygrad.torch.attach`. A context manager: leaving it detaches.

    Attributes:
        policy: the clipping policy.
    """

    how_to_record = "attach(optimizer, ..., run='run.db')"

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        policy: Policy,
        on_nonfinite: OnNonfinite,
        run: object,
        names: Names | None,
        optimizer_index: int,
        process_group: Groups = None,
        observed: bool = False,
    ) -> None:
        attached = getattr(optimizer, scaler.HANDLE, None)
        if attached is not None and attached.makes_room():
            attached = None
        if attached is not None and is_interactive():
            attached.detach()  # a cell was run again
            say_detached(type(optimizer).__name__)
        elif attached is not None:
            raise AttachError(
                f"this {type(optimizer).__name__} is attached already; call detach() on the handle "
                "that attach returned, or give both policies in one attach as {pattern: spec}"
            )
        self.policy = policy
        self._engine = Engine(
            optimizer, policy, on_nonfinite, run, names, optimizer_index, process_group
        )
        weakref.finalize(self, self._engine.journal.ends_by_itself)
        engine = self._engine
        before = quiet_step(engine.before, engine.terms, engine.fault)
        after = quiet_call(engine.after, engine.after_terms, engine.fault)
        self._take_hooks = give_hooks(optimizer, called=observed)
        self._hooks = [
            optimizer.register_step_pre_hook(copies.UncopiedHook(eager(before))),
            optimizer.register_step_post_hook(copies.UncopiedHook(eager(after))),
        ]
        self._loop: AttachedLoop | None = None
        self._clips: AttachedClips | None = None
        self._replaced: Callable[[], None] | None = None
        self._reached_inside = False
        setattr(optimizer, scaler.HANDLE, self)
        scaler.watch(optimizer)
        copies.mark_copies(optimizer)

    # -- what the user calls -----------------------------------------------------------------

    @property
    def stats(self) -> GradientStats | None:
        """The last step's figures, before clipping; None before the first step."""
        return self._engine.stats

    @property
    def last(self) -> StepRecord:
        """The last step's record; where its figures are on a device, this waits for them.

        Raises:
            UsageError: there was no step yet.
        """
        record = self._engine.journal.last
        if record is None:
            raise UsageError("no step yet: call optimizer.step() before reading .last")
        return record

    @property
    def names(self) -> tuple[str, ...]:
        """What the optimizer's parameters are called."""
        return self._engine.names()

    @property
    def origin(self) -> Origin | None:
        """Where the last NaN or inf came from; None without one, or without `find_nan`."""
        return self._engine.origins.last

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer attached to.

        Raises:
            UsageError: nothing else holds it any more.
        """
        return self._engine.optimizer

    @property
    def steps(self) -> int:
        """Number of steps seen, skipped ones included."""
        return self._engine.steps

    @property
    def overhead_seconds(self) -> float:
        """Time spent here so far."""
        return self._engine.seconds

    # -- reading the run that is being recorded ------------------------------------------------

    def flush(self) -> None:
        """Wait until every finished step can be read back from the run file."""
        self._engine.flush()

    def _recorded_by(self) -> RunWriter | None:
        return self._engine.journal.writer

    def _policy(self) -> str:
        return self.policy.spec()

    def _last(self) -> StepRecord | None:
        return self._engine.journal.last

    def state_dict(self) -> dict[str, object]:
        """Everything that a resumed training needs: tensors, strings and numbers only.

        Returns:
            The policy's spec and state, the tensors' names, and the number of steps.
        """
        return {"policy": self.policy.spec(), **self._engine.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`.

        Args:
            state: from a handle with the same policy over the same tensors.

        Raises:
            UsageError: the policy or the tensors differ; says how.
        """
        missing = {"policy", "names", "steps", "state"} - state.keys()
        if missing:
            raise UsageError(f"not a steadygrad state: it lacks {', '.join(sorted(missing))}")
        if state["policy"] != self.policy.spec():
            raise UsageError(
                f"the saved state is of the policy {state['policy']!r}, but this optimizer is "
                f"attached with {self.policy.spec()!r}: type attach(optimizer, "
                f"clip={state['policy']!r}), or start the new policy without load_state_dict"
            )
        names = self._engine.names()
        if self.policy.per_tensor and list(state["names"]) != list(names):
            raise UsageError(
                f"the policy {self.policy.spec()} remembers each tensor, and the saved state is of "
                f"other tensors: {_difference(state['names'], names)}"
            )
        self._engine.load(state)

    def detach(self) -> None:
        """Leave the optimizer as it was before `attach`; a second call does nothing."""
        self._engine.abandon()
        optimizer = self._engine.attached_to()
        if optimizer is not None and getattr(optimizer, scaler.HANDLE, None) is self:
            for hook in self._hooks:
                hook.remove()
            self._take_hooks()
            delattr(optimizer, scaler.HANDLE)
            scaler.unwatch(optimizer)
            copies.unmark_copies(optimizer)
        losses.forget(self)
        if self._loop is not None:
            self._loop.end()
        if self._clips is not None:
            self._clips.end()
        self._engine.close()

    def __reduce__(self) -> Any:
        return type(None), ()  # in a copy or pickle of an optimizer that takes its attributes along

    def __enter__(self) -> Steady:
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def observe_loss(self, value: object) -> None:
        """Tell a loss whose gradients the next step applies; several are summed.

        Args:
            value: unscaled, a number or a tensor of one element; kept without its graph.
        """
        value = value.detach() if isinstance(value, torch.Tensor) else value
        self._engine.losses.tell(value)

    @internal
    def hear_losses(self) -> None:
        """From now on, know the losses on which `backward` is called without being told."""
        self._engine.hear_losses(losses.hear(self), losses.so_far)
        self._watch_loop()

    @internal
    def hear_from(self, meter: losses.LossMeter) -> None:
        """From now on, know the losses from a meter that somebody else tells of each `backward`."""
        self._engine.hear_losses(meter.of_step, lambda: meter.so_far)

    def _watch_loop(self) -> None:
        """Look at the first steps' losses and gradients, where a run is recorded by this alone."""
        writer = self._engine.journal.writer
        observed_by = getattr(writer, "info", {}).get("observed_by")
        if writer is None or self._loop is not None or observed_by in ("run", "cell"):
            return
        self._loop = AttachedLoop(self.optimizer, self._engine.index, writer)
        after = copies.UncopiedHook(eager(self._loop.after_step))
        self._hooks.append(self.optimizer.register_step_post_hook(after))
        self._loop.begin()

    @internal
    def watch_clips(self) -> None:
        """From now on, be told of the script's own clip calls.

        Without a policy, figures are then those before such calls. Every rank is told: some of what
        is read then is put together from all of them.
        """
        writer = self._engine.journal.writer
        if getattr(writer, "info", {}).get("observed_by") in ("run", "cell"):
            return
        engine, observes = self._engine, isinstance(self.policy, NoClip)
        if observes:
            engine.measure_through(ObservingClipper(engine.clipper.on_nonfinite, reading_of))
        policy = None if observes else self.policy.spec()
        self._clips = AttachedClips(self.optimizer, engine.index, writer, policy)
        after = copies.UncopiedHook(eager(self._end_of_clips))
        self._hooks.append(self.optimizer.register_step_post_hook(after))
        self._clips.begin()

    def _end_of_clips(self, *_: object) -> None:
        """A step is over, or was dropped."""
        if self._clips is not None and self._engine.step is None:
            self._clips.stepped(self._engine.steps - 1)

    @internal
    def find_nan(self, quiet: bool = False) -> None:
        """From now on, find out where the first non-finite gradient or loss comes from.

        Args:
            quiet: no warning; the answer is in `origin` and in the run file.
        """
        self._engine.origins.find(self.optimizer, quiet)

    @internal
    def act_through(self, clipper: Clipper) -> None:
        """Measure and act through another clipper, in silence.

        `steadygrad run` puts one here that changes nothing and knows of the script's own clip
        calls; a script that is only observed is not warned either.

        Args:
            clipper: used from the next step on.
        """
        self._engine.act_through(clipper)

    @internal
    def survive(
        self,
        tell: Callable[[Exception], None],
        tell_user: Callable[[str], None],
        tell_of_ranks: Callable[[str], None],
    ) -> None:
        """From now on, let no fault or warning of ours into the training: it goes on as it is.

        Args:
            tell: given each fault.
            tell_user: given a sentence on what the script does.
            tell_of_ranks: given a sentence where ranks differ in what they should hold alike.
        """
        self._engine.survive(tell, tell_user, tell_of_ranks)

    @internal
    def give_way(self, replaced: Callable[[], None]) -> None:
        """Let a later `attach` to this optimizer take this handle's place.

        Args:
            replaced: called when that happens.
        """
        self._replaced = replaced

    @internal
    def when_idle(self, tell: Callable[[], None]) -> None:
        """Say what to do once it shows that nothing can be seen of this optimizer's steps.

        Args:
            tell: called after such a step; without it the user is warned.
        """
        self._engine.when_idle(tell)

    @internal
    def makes_room(self) -> bool:
        """Whether this handle was there for want of one of the script's own; it is gone then."""
        if self._replaced is None:
            return False
        self.flush()
        self.detach()
        self._replaced()
        return True

    @internal
    def recover(self, ladder: Ladder, model: torch.nn.Module | None) -> None:
        """From now on, act on steps that are struck.

        Args:
            ladder: what may be done.
            model: whose buffers are put back too.

        Raises:
            UsageError: the snapshots do not fit the memory budget.
            AttachError: this optimizer cannot be skipped.
        """
        self._engine.recover(ladder, model)
        self.hear_losses()

    def remember(self, **objects: Stateful) -> None:
        """Save and restore these along with the optimizer: schedulers, a scaler, a loader, an EMA.

        Args:
            objects: with ``state_dict`` and ``load_state_dict``, each under a name of its own.

        Raises:
            UsageError: one has no state, or ``recover=`` was not asked for.
        """
        self._recovery.snapshots.partners.remember(**objects)

    def restore(self, folder: str | os.PathLike[str] | None = None) -> int:
        """Put back the newest whole snapshot on disk; call it before the training loop.

        Weights, buffers, optimizer, policy, random generators, schedulers, a loss scaler and what
        `remember` was told of. Where in its data a loader was, only the script can know.

        Args:
            folder: where the snapshots are; None for that of ``recover=``, or, under
                ``steadygrad run --resume``, that of the run to go on with.

        Returns:
            Number of the step to go on with; 0 where there is no snapshot.

        Raises:
            UsageError: no folder is known, the snapshot is of other weights, or ``recover=`` was
                not asked for.
        """
        recovery = self._recovery
        place = take(self._engine.index) if folder is None else os.fspath(folder)
        return self._engine.restore(recovery, place)

    @overload
    def skip_batches(self) -> list[int]: ...

    @overload
    def skip_batches(self, loader: Iterable[Batch], start: int = 0) -> Iterator[Batch]: ...

    def skip_batches(
        self, loader: Iterable[Batch] | None = None, start: int = 0
    ) -> Iterator[Batch] | list[int]:
        """A loader without the batches that recovery leaves out, or their numbers.

        Args:
            loader: gives batches; None for the numbers alone.
            start: number of the loader's first batch, after a restart.

        Returns:
            The other batches; or, without a loader, the numbers of those left out.

        Raises:
            UsageError: ``recover=`` was not asked for.
        """
        left_out = self._recovery.snapshots.left_out
        return left_out.numbers() if loader is None else left_out.of(loader, start)

    @property
    def recoveries(self) -> list[RecoveryEvent]:
        """What recovery did so far, in order; empty without ``recover=``."""
        recovery = self._engine.recovery
        return [] if recovery is None else list(recovery.acts)

    @property
    def _recovery(self) -> Recovering:
        if self._engine.recovery is None:
            raise UsageError("no recovery was asked for: type attach(optimizer, recover='auto')")
        return self._engine.recovery

    @internal
    def scaler_enters(self, scale: torch.Tensor, owner: torch.amp.GradScaler) -> None:
        """`GradScaler.step` begins on this optimizer."""
        if self._engine.recovery is not None:
            self._engine.recovery.snapshots.partners.met_scaler(owner)
        self._engine.scaler_enters(scale)

    @internal
    def scaler_leaves(self) -> None:
        """`GradScaler.step` is over; where it called no `step`, it found an overflow."""
        self._engine.scaler_leaves()
        self._end_of_clips()

    @internal
    def begin_inside(
        self, inner: torch.optim.Optimizer, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> Arguments | None:
        """Begin the step that is under way here: it had no hooks, and has reached an inner one's.

        Where it is skipped, what the optimizer itself does after that step cannot be kept from it.

        Args:
            inner: whose hook before its step this is.
            args: as the hook has them.
            kwargs: as the hook has them.

        Returns:
            What that hook is to return.
        """
        engine, outer = self._engine, self.optimizer
        begun = engine.before(outer, (outer, *args[1:]), kwargs)
        self._reached_inside = True

        def after(_: object, args: object, kwargs: object) -> None:
            hook.remove()
            self._reached_inside = False
            engine.after(outer, args, kwargs)

        hook = inner.register_step_post_hook(copies.UncopiedHook(after))
        if begun is None:
            return None
        (whose, *others), kwargs = begun
        return (inner if whose is outer else by_shadow(inner)[0], *others), kwargs

    @property
    def stepping(self) -> Callable[[], object]:
        """Refers weakly to what has a ``step`` while one is under way here."""
        return weakref.ref(self._engine)

    @property
    @internal
    def is_under_way(self) -> bool:
        """Whether a step is, or the ``step`` of a base class in it has just returned."""
        return self._engine.step is not None

    @internal
    def contains_step_of(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether the step that an optimizer begins is a part of the step under way here.

        Args:
            optimizer: such as the one inside a SAM, whose step is one with the SAM's.
        """
        if self._engine.step is None or self._engine.is_of(optimizer):
            return False
        outer = self._engine.attached_to()
        if outer is None or not (self._reached_inside or steps_running(outer, 1)):
            return False
        return optimizer not in self._engine.beside and holds_parameters_of(outer, optimizer)


def _difference(saved: Iterable[str], present: Iterable[str]) -> str:
    gone, new = sorted(set(saved) - set(present)), sorted(set(present) - set(saved))
    return f"missing here {gone[:3]}, not saved {new[:3]}" if gone or new else "their order differs"
