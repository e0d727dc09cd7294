"""See a script's training in torch, once the script has imported it.

What is observed: `torch.autograd.backward` (which `Tensor.backward` calls), the clip functions of
`torch.nn.utils`, `GradScaler`, and by the global hook every optimizer's step. They stay the
functions that they were (see `steadygrad.torch.internals.inlay`), so that tracebacks, warnings and
`torch.compile` see the script's own calls alone. Most of ours is loaded when one of them is used.
"""

from __future__ import annotations

import math
import os
import threading
import types
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from steadygrad.kernels.native import Same, Stamped
from steadygrad.launch.imports import watch
from steadygrad.launch.undoing import note
from steadygrad.torch.clip_calls.clipcall import (
    Call,
    ClipVisit,
    Replacement,
    inside_another,
    listed,
)
from steadygrad.torch.clip_calls.functions import CLIP_FUNCTIONS, ClipFunction
from steadygrad.torch.clip_calls.unscaling import UnscaleVisit, unscaled_by
from steadygrad.torch.internals import sites
from steadygrad.torch.internals.eager import eager
from steadygrad.torch.internals.inlay import Arguments, Visit
from steadygrad.torch.internals.patches import PatchSet
from steadygrad.torch.internals.private import graph_task
from steadygrad.torch.internals.quiet import (
    CallTerms,
    ClipTerms,
    GradTerms,
    PassTerms,
    quiet_call,
    quiet_clip,
    quiet_grad,
    quiet_pass,
)
from steadygrad.torch.internals.sites import Site

if TYPE_CHECKING:
    from steadygrad.launch.contracts import RunContext
    from steadygrad.launch.torch_script.observer import TorchObserver
    from steadygrad.torch.step.observing import StepArguments, StepOutcome


_ALIVE: weakref.WeakSet[TorchPatches] = weakref.WeakSet()


def _after_fork() -> None:
    for patches in list(_ALIVE):
        patches.begin_anew()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_after_fork)


class _Thread(threading.local):
    """What is under way in one thread.

    Attributes:
        inside: a `backward` of the script that is followed to its end.
    """

    inside = False


class TorchPatches(Stamped):
    """What is observed of torch in one process; makes the observer at its first use.

    Args:
        session: the run.
    """

    def __init__(self, session: RunContext) -> None:
        self._session = session
        self._observer: TorchObserver | None = None
        self._parents: TorchObserver | None = None
        self._failed = False
        self._thread = _Thread()
        self._making = threading.RLock()
        self.set = PatchSet(self._make)
        _ALIVE.add(self)

    def observer(self) -> TorchObserver | None:
        """The observer, or None where it could not be made."""
        if self._observer is None and not self._failed:
            with self._making:
                self._new_observer()
        return self._observer

    def _new_observer(self) -> None:
        if self._observer is not None or self._failed:  # another thread was first
            return
        if self._parents is not None:  # what was attached belongs to the parent's run file
            self._parents.abandon()
            self._parents = None
        try:
            from steadygrad.launch.torch_script.observer import TorchObserver
            from steadygrad.torch.origin.patches import forget

            observer = TorchObserver(self._session)
            if self._session.plan.find_nan:
                observer.find_nan()
                forget(self)  # the observer listens in our place
            self._observer = observer
        except Exception as error:
            self._failed = True
            self._session.trouble("torch is not observed", error)

    def begin_anew(self) -> None:
        """In a forked child, which may never train: an observer of its own is made when it does."""
        self._thread, self._making = _Thread(), threading.RLock()
        self._parents, self._observer = self._observer or self._parents, None

    def finish(self) -> None:
        """The script is over."""
        if self._observer is not None:
            self._observer.finish()

    def release(self) -> None:
        """Leave torch, and the optimizers attached to, as they were."""
        from steadygrad.torch.origin.patches import forget

        for observer in filter(None, (self._observer, self._parents)):
            observer.abandon()
        self._failed = True  # a call under way in another thread makes no new one
        self._observer = self._parents = None
        forget(self)
        self.set.release(self)

    @property
    def steps(self) -> int:
        """Optimizer steps seen so far."""
        return self._observer.steps if self._observer is not None else 0

    @property
    def backwards(self) -> int:
        """Backward passes seen so far."""
        return self._observer.backwards if self._observer is not None else 0

    def kept_elsewhere(self, parameters: list[torch.Tensor]) -> float:
        """Keras has stepped on these, and its own observer keeps that step; returns its loss."""
        observer = self.observer()
        return float("nan") if observer is None else observer.kept_elsewhere(parameters)

    def clipped_elsewhere(
        self, parameters: list[torch.Tensor], names: tuple[str, ...], step: int, number: int
    ) -> StepOutcome | None:
        """What the script's clip calls did to gradients that another optimizer is given."""
        observer = self.observer()
        if observer is None:
            return None
        return observer.clipped_elsewhere(parameters, names, step, number)

    # -- what torch's functions tell -----------------------------------------------------------

    def _make(self, patches: PatchSet) -> None:
        backward = quiet_pass(self._backward, self._quiet_passes, self._fault)
        patches.add(sites.BACKWARD.listen(backward))
        patches.add(sites.GRAD.listen(quiet_grad(self._grad, self._quiet_grads, self._fault)))
        for function in CLIP_FUNCTIONS:
            begins = self._clips(function)
            if function.kind == "norm" and not function.exact:
                begins = quiet_clip(begins, self._quiet_clips, self._fault)
            patches.add(function.site.listen(begins))
        patches.add(sites.SCALE.listen(self._scale))
        patches.add(sites.UNSCALE.listen(self._unscale))
        patches.add(sites.SCALER_STEP.listen(self._scaler_step))
        step = quiet_call(self._step, self._quiet_steps, self._fault)
        hook = register_optimizer_step_pre_hook(eager(step))

        def unhook() -> bool:
            hook.remove()
            return True

        patches.add(unhook)

    def see_agc(self, module: types.ModuleType) -> None:
        """Observe timm's adaptive clipping, by which its ``dispatch_clip_grad`` clips too."""
        site = Site("adaptive_clip_grad", [module], guarded=False)
        if site.exists:
            self.set.add(site.listen(self._clips(ClipFunction(site, "agc"))))

    def _backward(self, arguments: Arguments) -> Visit | None:
        # a tensor subclass calls the function again; re-entrant checkpointing does so, too
        if graph_task() != -1 or self._thread.inside:
            return None
        observer = self._observer or self.observer()
        if observer is None:
            return None
        roots, weights = arguments[0], arguments[1]
        if type(roots) is torch.Tensor and weights is None:
            if not observer.before_backward([roots], None):
                return None  # such a tensor calls nothing again
        else:
            if not isinstance(roots, (torch.Tensor, tuple, list)):
                roots = roots if roots is None else list(roots)  # it may be read only once
                arguments = (roots, *arguments[1:])
            weights = None if weights is None else sites.listed(weights)
            observer.before_backward(sites.listed(roots), weights)
        self._thread.inside = True
        return _ScriptBackward(arguments, observer, self._thread)

    def _grad(self, arguments: tuple[object, ...]) -> Visit | None:
        observer = self._observer
        # derivatives by inputs (PINNs, penalties), of which a step may have several
        if observer is not None and observer.has_stepped and type(arguments[1]) is torch.Tensor:
            return None
        if graph_task() != -1:
            return None
        observer = observer or self.observer()
        if observer is None or (observer.steps and type(arguments[1]) is torch.Tensor):
            return None
        # a generator, such as model.parameters(), may be read only once
        once = (list(each) if isinstance(each, Iterator) else each for each in arguments[:2])
        return _Grad((*once, *arguments[2:]), observer)

    def _step(
        self, optimizer: torch.optim.Optimizer, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> StepArguments | None:
        """The hook before every optimizer's step."""
        observer = self._observer or self.observer()
        return None if observer is None else observer.before_step(optimizer, args, kwargs)

    def _quiet_steps(self) -> CallTerms | None:
        """The terms on which the hook before a step only counts it."""
        observer = self._observer
        quiet = None if observer is None else observer.quiet_steps()
        return None if quiet is None else quiet._replace(same=(*self._stays, *quiet.same))

    def _quiet_passes(self) -> PassTerms | None:
        """The terms on which a backward pass only tells its loss."""
        observer = self._observer
        same = None if observer is None else observer.quiet_passes()
        if observer is None or same is None:
            return None
        return PassTerms(
            same=(*self._stays, (self, "_thread", self._thread), *same),
            now=((self._thread, "inside", False),),
            task=graph_task,
            tensor=torch.Tensor,
            losses=observer.losses,
            owner=observer,
            counted="backwards",
        )

    def _quiet_grads(self) -> GradTerms | None:
        """The terms on which derivatives by inputs are not looked at."""
        observer = self._observer
        if observer is None or not observer.has_stepped:
            return None
        return GradTerms((*self._stays, (observer, "has_stepped", True)), torch.Tensor)

    def _quiet_clips(self) -> ClipTerms | None:
        """The terms on which a clip call is like the one before."""
        observer = self._observer
        terms = None if observer is None else observer.quiet_clips()
        return None if terms is None else terms._replace(same=(*self._stays, *terms.same))

    @property
    def _stays(self) -> Same:
        return ((self, "_observer", self._observer),)

    def _fault(self, error: Exception) -> None:
        self._session.trouble("part of the run was not observed", error)

    def _clips(self, function: ClipFunction) -> Any:
        def begins(arguments: Arguments) -> Visit | None:
            if inside_another(function.kind):
                return None
            observer = self._observer or self.observer()
            if observer is None:
                return None
            parameters, arguments = listed(arguments)
            if function.kind == "norm":
                visit = observer.clips_as_before(function.exact, parameters, arguments)
                if visit is not None:
                    return visit
            call = function.call(arguments, parameters)
            if call.only_measures:
                return ClipVisit(call, observer.after_clip)
            if observer.acts_on(call.parameters):
                result = call.norm_before()
                observer.instead_of_clip(call.parameters)
                return Replacement(call, result)
            call.note = observer.before_clip(call)
            return ClipVisit(call, observer.after_clip)

        return begins

    def watch_fsdp1(self, module: types.ModuleType) -> None:
        """Watch FSDP1's own clip function, a method of its modules.

        Args:
            module: ``torch.distributed.fsdp.fully_sharded_data_parallel``, just imported.
        """
        site = Site("clip_grad_norm_", [module.FullyShardedDataParallel], guarded=False)
        if site.exists:
            self.set.add(site.listen(self._fsdp1_clips))

    def watch_deepspeed(self, module: types.ModuleType) -> None:
        """Watch for DeepSpeed's own clipping, which no function of torch does.

        Args:
            module: ``deepspeed.runtime.engine``, just imported.
        """
        site = Site("_take_model_step", [module.DeepSpeedEngine], guarded=False)
        if site.exists:
            self.set.add(site.listen(self._deepspeed_steps))

    def _deepspeed_steps(self, arguments: tuple[object, ...]) -> None:
        self._session.guarded("DeepSpeed is not observed", self._name_deepspeed, arguments[0])

    def _name_deepspeed(self, engine: Any) -> None:
        limit, parts = float(engine.gradient_clipping() or 0.0), bool(engine.zero_optimization())
        observer = self.observer()
        if observer is not None:
            observer.engine_steps(engine.module.parameters(), parts)
        reasons = [f"DeepSpeed clips by itself (gradient_clipping={limit:g})"] * (limit > 0)
        reasons += ["DeepSpeed's ZeRO splits gradients among processes"] * parts
        if reasons:
            self._session.mention(
                f"{' and '.join(reasons)} before the optimizer that is observed here is called: "
                "norms on record are of what that was given. DeepSpeed's own are recorded by "
                "steadygrad.integrations.deepspeed.observe(engine, run='deepspeed.db')"
            )

    def _fsdp1_clips(self, arguments: tuple[Any, ...]) -> Visit | None:
        from steadygrad.torch.distributed.ownership import spread_of_some
        from steadygrad.torch.dropins.clip_norm import clip_grad_norm_

        observer = self.observer()
        module, max_norm, norm_type = arguments
        with_gradients = [p for p in module.parameters() if p.grad is not None]
        if observer is None or spread_of_some(with_gradients)[1] is None:
            return None  # whole gradients: it calls torch's own function, which tells of itself
        names = ("parameters", "max_norm", "norm_type")
        call = Call("norm", names, (with_gradients, max_norm, norm_type))
        visit: Visit
        if observer.acts_on(call.parameters):
            visit = Replacement(call, clip_grad_norm_(with_gradients, math.inf, norm_type).float())
            observer.instead_of_clip(call.parameters)
        else:
            call.note = observer.before_clip(call)
            visit = ClipVisit(call, observer.after_clip)
        visit.arguments = arguments
        return visit

    def _scale(self, arguments: Arguments) -> Visit | None:
        observer = self.observer()
        scaler = arguments[0]
        if observer is None or not scaler.is_enabled():
            return None
        return _Scale(arguments, observer)

    def _unscale(self, arguments: Arguments) -> Visit | None:
        observer = self.observer()
        if observer is None or not arguments[0].is_enabled():
            return None
        unscaling = observer.before_unscale(unscaled_by(arguments))
        return UnscaleVisit(arguments, unscaling, observer.after_unscale)

    def _scaler_step(self, arguments: Arguments) -> Visit | None:
        # a scaler does not call the step of an optimizer whose gradients overflow
        observer = self.observer()
        if observer is not None and arguments[0].is_enabled():
            observer.before_scaler(arguments[1])
            return _ScalerStep(arguments, observer)
        return None


class _ScriptBackward(Visit):
    """One `backward` of the script."""

    def __init__(self, arguments: Arguments, observer: TorchObserver, thread: _Thread) -> None:
        self.arguments = arguments
        self._observer, self._thread = observer, thread

    def returns(self, result: object) -> object:
        self._observer.after_backward()
        return result

    def ends(self) -> None:
        self._thread.inside = False


class _Grad(Visit):
    """One `torch.autograd.grad` of the script."""

    def __init__(self, arguments: tuple[object, ...], observer: TorchObserver) -> None:
        super().__init__(arguments)
        self._observer = observer

    def returns(self, result: object) -> Any:
        outputs, inputs, weights = self.arguments[:3]
        self._observer.after_grad(outputs, inputs, weights, result)
        return result


class _Scale(Visit):
    """One `GradScaler.scale`."""

    def __init__(self, arguments: Arguments, observer: TorchObserver) -> None:
        super().__init__(arguments)
        self._observer = observer

    def returns(self, result: object) -> object:
        self._observer.losses.scaled(result, self.arguments[0]._scale)
        return result


class _ScalerStep(Visit):
    """One `GradScaler.step`."""

    def __init__(self, arguments: Arguments, observer: TorchObserver) -> None:
        super().__init__(arguments)
        self._observer = observer

    def returns(self, result: object) -> object:
        self._observer.after_scaler(self.arguments[1])
        return result


def install(session: RunContext) -> TorchPatches:
    """Observe torch in this process.

    Args:
        session: the run.

    Returns:
        What observes, which the session ends.
    """
    patches = TorchPatches(session)
    if session.plan.find_nan:
        from steadygrad.torch.origin.patches import listen

        # from before the model is made: the first step may be the one that breaks
        listen(patches).armed = True
    patches.set.hold(patches)
    note(patches.release)
    watch({"timm.utils.agc": patches.see_agc})
    return patches
