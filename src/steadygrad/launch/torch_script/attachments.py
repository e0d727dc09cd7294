"""The script's optimizers, each attached to when it first steps."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from steadygrad.errors import AttachError, UsageError
from steadygrad.kernels.native import Stamped
from steadygrad.launch.contracts import RunContext
from steadygrad.launch.torch_script.census import Census
from steadygrad.policies.choice import resolve
from steadygrad.runlog.records import TensorInfo
from steadygrad.text import listed
from steadygrad.torch.distributed.ownership import spread_of
from steadygrad.torch.gradients.parameters import parameters_of
from steadygrad.torch.internals import scaler
from steadygrad.torch.internals.private import calls_hooks, give_hooks
from steadygrad.torch.internals.quiet import CallTerms
from steadygrad.torch.record.ranks import finish_ranks
from steadygrad.torch.record.recording import settings_of
from steadygrad.torch.step.observing import (
    ObservingClipper,
    Steady,
    attach_unheard,
    inner_optimizers,
    is_facade,
    is_stand_in,
    skipping_of,
    unmark_copies,
    wrapper_without_hooks,
)

Parameters = list[torch.Tensor]
FEW = 8
"""Optimizers among which one is found quickest by a look at each."""
_NONE: Mapping[str, float] = {}


class Attachments(Stamped):
    """Attaches to optimizers, and gives each a number and its parameters names.

    Args:
        context: the run.

    Attributes:
        census: the script's modules and optimizers; None before the first backward or step.
        tensor_names: what the run file calls each parameter, by its id.
        of_parts: each rank's optimizers hold a part of the weights, as a library has cut them.
    """

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self.census: Census | None = None
        self.of_parts = False
        # another dict whenever one comes or goes
        self._attached: Mapping[int, weakref.ref[torch.optim.Optimizer]] = {}
        self._names_taken: set[str] = set()
        self.tensor_names: dict[int, str] = {}
        self._number_of: dict[int, int] = {}
        self._of_nobody: set[int] = set()
        self._refused: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
        self._hooks_given: list[Callable[[], None]] = []

    def __iter__(self) -> Iterator[torch.optim.Optimizer]:
        refs = list(self._attached.values())
        return iter([optimizer for ref in refs if (optimizer := ref()) is not None])

    def __contains__(self, optimizer: object) -> bool:
        ref = self._attached.get(id(optimizer))
        return ref is not None and ref() is optimizer

    def handle_of(self, optimizer: torch.optim.Optimizer) -> Steady | None:
        """The handle of an optimizer that is attached to, and whose step is not part of another's.

        Asked at every step; for None, `leaves_alone` knows more.
        """
        ref = self._attached.get(id(optimizer))
        if ref is None or ref() is not optimizer:
            return None
        if len(self._attached) > 1 and self._is_part_of_a_step(optimizer):
            return None
        return getattr(optimizer, scaler.HANDLE, None)

    def quiet(self) -> CallTerms | None:
        """The terms on which a step is one of those attached to, and part of no other's."""
        handles = self._handles()
        if not 0 < len(handles) <= FEW:
            return None
        return CallTerms(
            optimizers=tuple(map(weakref.ref, self)),
            idle=tuple(handle.stepping for handle in handles),
            same=((self, "_attached", self._attached),),
        )

    def counted(self) -> Census:
        """The census, made now where it was not."""
        if self.census is None:
            self.census = Census(self._meet)
        return self.census

    def number_of(self, ids: Iterable[int]) -> int:
        """Number of the optimizer that holds one of these parameters; 0 where none does."""
        return next((self._number_of[each] for each in ids if each in self._number_of), 0)

    def leaves_alone(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether a step is none to record: the script's own handle does, or it is part of one.

        One that could not be attached to is let alone, too: to ask again at every step is dear.
        """
        attached = optimizer in self
        if not attached and optimizer in self._refused:
            return True
        if not attached and is_facade(optimizer):
            self._refused.add(optimizer)  # those inside of it are met when they step
            return True
        if attached or getattr(optimizer, scaler.HANDLE, None) is None:
            return is_stand_in(optimizer) or self._is_part_of_a_step(optimizer)
        kind = type(optimizer).__name__
        self._context.attached.add(kind)
        self._context.mention(
            f"the script attaches steadygrad to its {kind} itself; the steps of that optimizer are "
            "clipped by its own handle, and recorded in the run file that it names by run=, not "
            "here"
        )
        return True

    def _meet(self, optimizer: torch.optim.Optimizer) -> None:
        """Have a wrapper call hooks that has none, so that a skipped step is skipped there too."""
        if self._may_wrap(optimizer) and not calls_hooks(optimizer):
            self._hooks_given.append(give_hooks(optimizer))

    def wrapper_of(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer | None:
        """The wrapper without hooks that has called this step, and was not met before."""
        outer = wrapper_without_hooks(optimizer) if self.acts else None
        return outer if outer is not None and self._may_wrap(outer) else None

    def _may_wrap(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether a wrapper is acted on in its own step, and not in that of the one inside."""
        inner = inner_optimizers(optimizer) if self.acts and not calls_hooks(optimizer) else []
        if not inner or optimizer in self._refused or is_facade(optimizer):
            return False
        if any(getattr(each, scaler.HANDLE, None) is not None for each in inner):
            return False
        plan = self._context.plan
        if resolve(plan.clip or "none", plan.on_nonfinite).on_nonfinite != "skip":
            return True
        try:
            skipping_of(optimizer)
        except AttachError as error:
            self._refused.add(optimizer)
            names = listed(sorted({type(each).__name__ for each in inner}))
            self._context.mention(
                f"steps with NaN or inf are skipped in the {names} inside the script's "
                f"{type(optimizer).__name__}, which goes on as if they were none: {error}"
            )
            return False
        return True

    @property
    def acts(self) -> bool:
        """Whether steps may be skipped: where they are only seen, the inner ones are."""
        return self._context.plan.clip is not None or self._context.plan.on_nonfinite is not None

    def _is_part_of_a_step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether it steps inside the step of one that wraps it: that is one step, not two."""
        for ref in list(self._attached.values()):
            each = ref()
            if each is not None and each is not optimizer:
                handle: Steady | None = getattr(each, scaler.HANDLE, None)
                if handle is not None and handle.contains_step_of(optimizer):
                    return True
        return False

    def will_act_on(self, parameters: Sequence[object]) -> bool:
        """Whether an optimizer that is, or will be, attached to holds any of these."""
        ids = [id(p) for p in parameters]
        if any(each in self._number_of for each in ids):
            return True
        if not ids or self._of_nobody.issuperset(ids):
            return False
        census = self.counted()
        if not any(each in census.owned() for each in ids):
            census.refresh()  # their optimizer may be newer than the census
        own = set(ids)
        owners = [o for o in census.optimizers() if not own.isdisjoint(map(id, parameters_of(o)))]
        acts = any(map(self._can_attach, owners))
        if not acts:
            self._of_nobody.update(ids)
            self._context.mention(
                "a clip call of the script was left as it is, and not replaced by --clip "
                f"{self._context.plan.clip}: no optimizer that steadygrad can attach to holds its "
                "parameters"
            )
        return acts

    def _can_attach(self, optimizer: torch.optim.Optimizer) -> bool:
        if getattr(optimizer, scaler.HANDLE, None) is not None:
            return optimizer in self
        if optimizer in self._refused:
            return False
        try:
            spread_of(parameters_of(optimizer))
        except UsageError:
            return False
        return True

    def steady(self, optimizer: torch.optim.Optimizer, clipper: object) -> Steady:
        """The handle of an optimizer; attaches to it at its first step.

        Args:
            optimizer: of the script.
            clipper: makes what observes, given the optimizer and its number; unused under
                ``--clip``.
        """
        if optimizer in self:
            handle: Steady = getattr(optimizer, scaler.HANDLE)
            return handle
        try:
            return self._attach(optimizer, clipper)
        except Exception:
            self._refused.add(optimizer)
            raise

    def _attach(self, optimizer: torch.optim.Optimizer, clipper: Any) -> Steady:
        plan, census, parameters = self._context.plan, self.counted(), parameters_of(optimizer)
        if not all(census.knows(p) for p in parameters):
            census.refresh()
        number = self.new_number(type(optimizer).__name__, settings_of(optimizer))
        infos = census.names(parameters, self._names_taken)
        self.tensor_names.update((key, info.name) for key, info in infos.items())
        steady = self._handle(optimizer, infos, number)
        context = self._context
        steady.survive(
            lambda error: context.trouble("a step was not observed", error),
            context.mention,
            self._tell_of_ranks,
        )
        self._number_of.update((id(p), number) for p in parameters)
        unmark_copies(optimizer)  # the script's own copies and pickles stay as they were
        if plan.clip is None:
            observing: ObservingClipper = clipper(optimizer, number)
            steady.act_through(observing)
        its_own = weakref.ref(optimizer)
        alive = {key: ref for key, ref in self._attached.items() if ref() is not None}
        self._attached = {**alive, id(optimizer): its_own}
        steady.give_way(lambda: self._left_to_script(its_own()))
        steady.when_idle(lambda: self._leave_to_inner(its_own()))
        return steady

    def _leave_to_inner(self, optimizer: torch.optim.Optimizer | None) -> None:
        """It makes gradients in its step; one inside of it is met when that steps."""
        if optimizer is not None:
            if not inner_optimizers(optimizer):
                self._context.mention(
                    f"steps of the script's {type(optimizer).__name__} are not seen: it makes its "
                    "gradients inside its own step(), and not in a closure that step() is given"
                )
            handle: Steady = getattr(optimizer, scaler.HANDLE)
            handle.flush()
            self._refused.add(optimizer)
            self._left_to_script(optimizer)

    def _left_to_script(self, optimizer: torch.optim.Optimizer | None) -> None:
        if optimizer is not None:
            own = id(optimizer)
            self._attached = {key: ref for key, ref in self._attached.items() if key != own}

    def _tell_of_ranks(self, sentence: str) -> None:
        if not self.of_parts:  # their norms differ, and nothing is amiss
            self._context.mention(sentence)

    def _handle(
        self, optimizer: torch.optim.Optimizer, infos: dict[int, TensorInfo], number: int
    ) -> Steady:
        """Attach; one that cannot be skipped is clipped all the same, and its NaN goes through."""
        plan = self._context.plan

        def attach(on_nonfinite: str | None) -> Steady:
            return attach_unheard(
                optimizer,
                clip=plan.clip or "none",
                on_nonfinite=on_nonfinite,
                run=self._context.writer(),
                names=infos,
                optimizer_index=number,
                observed=True,
            )

        try:
            return attach(plan.on_nonfinite)
        except AttachError as error:
            if resolve(plan.clip or "none", plan.on_nonfinite).on_nonfinite != "skip":
                raise
            self._context.mention(
                f"steps with NaN or inf are not skipped here, and go through as in the plain run: "
                f"{error}"
            )
            return attach("propagate")

    def new_number(self, kind: str, settings: Mapping[str, float] = _NONE) -> int:
        """The next optimizer's number, its class put on record.

        Args:
            kind: its class.
            settings: numbers of it that explain a step.
        """
        return self._context.optimizers.enter(kind, settings, {"framework": "torch"})

    def names(self, parameters: Parameters) -> dict[int, Any]:
        """Describe parameters that no optimizer holds."""
        return self.counted().names(parameters, self._names_taken)

    def deliver(self) -> None:
        """The script is over: what is still under way of its steps, on a device or a rank."""
        for handle in self._handles():
            handle.flush()
        self._context.optimizers.finish()
        finish_ranks()

    def abandon(self) -> None:
        """Let go of what was attached for a run file that is another process's, or closed next."""
        for handle in self._handles():
            handle.detach()
        while self._hooks_given:
            self._hooks_given.pop()()

    def _handles(self) -> list[Steady]:
        """Of the optimizers whose handle the script, or another run, has not taken away."""
        handles = (getattr(optimizer, scaler.HANDLE, None) for optimizer in self)
        return [handle for handle in handles if handle is not None]
