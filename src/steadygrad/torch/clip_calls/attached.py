"""A script's own clip calls, as an attached optimizer that records a run is told of them.

Without a policy of its own, what is recorded is what the gradients were before those calls, and
what they left, as under `steadygrad run`. A policy acts on what they leave: that its norms are
those after the script's clip is said once.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

import numpy as np
import torch

from steadygrad import kernels
from steadygrad.errors import ClippedTwiceWarning
from steadygrad.runlog.clip_calls import CallBook, number
from steadygrad.runlog.writer import RunWriter
from steadygrad.torch.clip_calls.calls import new_events
from steadygrad.torch.clip_calls.clipcall import Call, ClipVisit, inside_another
from steadygrad.torch.clip_calls.clips import ClipCall, ClipLog, Unscaling
from steadygrad.torch.clip_calls.functions import CLIP_FUNCTIONS, ClipFunction
from steadygrad.torch.clip_calls.unscaling import UnscaleVisit, unscaled_by
from steadygrad.torch.gradients.parameters import parameters_of
from steadygrad.torch.gradients.pieces import local
from steadygrad.torch.internals import sites
from steadygrad.torch.internals.inlay import Arguments, Begin, Visit
from steadygrad.torch.internals.patches import PatchSet
from steadygrad.torch.internals.warn import warn_user
from steadygrad.torch.record import losses
from steadygrad.vocabulary import SCRIPT_CLIP

Parameters = list[torch.Tensor]
Result = TypeVar("Result")


class AttachedClips:
    """Writes down the clip calls that concern one attached optimizer.

    Args:
        optimizer: held weakly.
        index: its number in the run.
        writer: of the run file; None where this process writes none.
        policy: spec of the policy that clips too; None where none does.

    Attributes:
        observes: no policy clips: what is recorded is what the calls did.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        index: int,
        writer: RunWriter | None,
        policy: str | None,
    ) -> None:
        self._optimizer = weakref.ref(optimizer)
        self._index, self._writer, self._policy = index, writer, policy
        self._book = CallBook()
        self._warned = self.observes = policy is None

    def begin(self) -> None:
        """From now on, be told of clip calls, until `end` or until this is gone."""
        _listening.hold(self)
        with _lock:
            _log.begin(self._parameters())

    def end(self) -> None:
        """Listen no more; with the last one, torch is as it was."""
        _listening.release(self)

    def holds_any(self, ids: Collection[int]) -> bool:
        """Whether a call with parameters of these ids may be for this optimizer."""
        return not ids or any(id(p) in ids for p in self._parameters())

    def stepped(self, step: int) -> None:
        """The optimizer has stepped, or its step was dropped: calls before it are over.

        Args:
            step: its number.
        """
        with _lock:
            params = self._parameters()
            clip_calls = _log.stepped(params)
            if clip_calls and self._writer is not None:
                with_grad = sum(p.grad is not None for p in params)
                self._write(self._writer, clip_calls, step, with_grad)

    def clipped(self, call: ClipCall, function: str) -> None:
        """A clip call is over: where a policy clips too, say so once.

        Args:
            call: what it did.
            function: what the script called.
        """
        if self._warned or not _acts(call) or not self.holds_any(call.ids):
            return
        self._warned = True
        limit = number(call.max_norm)
        kind = "value" if call.by_value else "norm"
        warn_user(
            f"the script calls {function}({limit:g}), and steadygrad clips the same gradients by "
            f"{self._policy} inside optimizer.step(): norms and coefficients on record are of "
            "what that call leaves. Remove the call, so that attach clips alone; or type "
            f"attach(..., clip='none') to record what the call does ({kind}:{limit:g})",
            ClippedTwiceWarning,
        )

    def _write(
        self, writer: RunWriter, clip_calls: list[ClipCall], step: int, of_params: int
    ) -> None:
        beside: dict[str, object] = {}
        if self._policy is not None:  # placed well: of calls beside it only their effect counts
            clip_calls = [call for call in clip_calls if _acts(call)]
            beside = {"policy": self._policy}
        for event in new_events(self._book, clip_calls, step, of_params, self._index):
            writer.write_event(SCRIPT_CLIP, event | beside, step)

    def _parameters(self) -> Parameters:
        optimizer = self._optimizer()
        return [] if optimizer is None else parameters_of(optimizer)


def _acts(call: ClipCall) -> bool:
    """Whether it has changed gradients, as far as that is known without waiting for a device."""
    if isinstance(call.coef, torch.Tensor) and call.coef.device.type != "cpu":
        return number(call.max_norm) < math.inf
    return not number(call.coef) >= 1  # NaN: it has, by what is not known


_log = ClipLog(losses.HEARD)
_lock = threading.RLock()
reading_of = _log.reading_of
"""What gradients were before the script's calls; None where it made none."""


def _make(patches: PatchSet) -> None:
    for function in CLIP_FUNCTIONS:
        patches.add(function.site.listen(_clips(function)))
    patches.add(sites.UNSCALE.listen(_unscale))


def _forget() -> None:
    """Nobody listens any more: what is known of gradients would not be true later."""
    _log.forget()


_listening = PatchSet(_make, _forget)


def _listeners() -> list[AttachedClips]:
    return [each for each in _listening.holders if isinstance(each, AttachedClips)]


def _clips(function: ClipFunction) -> Begin:
    def over(call: Call, result: object) -> None:
        _guarded(lambda: _clipped(call, result, function.name))

    def begins(arguments: Arguments) -> Visit | None:
        if not _listening.holders or inside_another(function.kind):
            return None
        call = function.call(arguments)
        if not call.only_measures:
            _guarded(lambda: _read(call))
        return ClipVisit(call, over)

    return begins


def _read(call: Call) -> None:
    # gradients in their place may be of any optimizer
    tensors = [p for p in call.parameters if isinstance(p, torch.Tensor)]
    ids = {id(p) for p in tensors if p.requires_grad}
    concerned = [listener for listener in _listeners() if listener.holds_any(ids)]
    if not concerned:
        return
    reads = any(listener.observes for listener in concerned)
    exceeds = not reads and call.kind == "value" and _exceeds(call.parameters, number(call.limit))
    call.note = _log.before(call.parameters, call.limit, call.norm_type, call.kind, reads)
    call.note.coef = math.nan if exceeds else 1.0


def _exceeds(parameters: Sequence[object], limit: float) -> bool:
    """Whether a clamp changes any of what this rank holds; a device is not waited for."""
    gradients = [p.grad for p in parameters if isinstance(p, torch.Tensor) and p.grad is not None]
    pieces = local(gradients)
    if any(piece.device.type != "cpu" for piece in pieces):
        return limit < math.inf
    return bool(pieces) and bool((kernels.read(pieces, math.inf).max_abs > limit).any())


def _clipped(call: Call, result: object, function: str) -> None:
    if call.note is not None:
        norm = call.total_norm if call.kind == "given norm" else result
        _log.after(call.note, norm, call.exact)
        for listener in _listeners():
            listener.clipped(call.note, function)


def _unscale(arguments: Arguments) -> Visit | None:
    if not _listening.holders or not arguments[0].is_enabled():
        return None
    unscaling = _guarded(lambda: _log.before_unscale(unscaled_by(arguments)))
    return UnscaleVisit(arguments, unscaling, _unscaled)


def _unscaled(unscaling: Unscaling) -> None:
    _guarded(lambda: _log.after_unscale(unscaling))


def _guarded(look: Callable[[], Result]) -> Result | None:
    """Look at a call of the script; a fault of ours ends the listening, and the call goes on."""
    try:
        with _lock, np.errstate(all="ignore"):
            return look()
    except Warning:  # the script has warnings raise
        raise
    except Exception:
        for listener in _listeners():
            listener.end()
    return None
