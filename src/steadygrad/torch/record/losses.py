"""The loss of each step, from the tensors on which `backward` is called.

Accumulation divides a loss before each backward, so the sum since the last step is
the mean that the training optimises. A loss scale is divided out again. On a device
the sum stays there: nothing is read by the host.

A recording handle hears losses by itself: for as long as one does, torch's `backward`
and `GradScaler.scale` tell of their calls, and one meter serves all handles.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from steadygrad.kernels import native
from steadygrad.kernels.native import Stamped
from steadygrad.torch.gradients.pieces import whole
from steadygrad.torch.internals import sites
from steadygrad.torch.internals.inlay import Arguments, Visit
from steadygrad.torch.internals.patches import PatchSet


class Heard(NamedTuple):
    """What one backward pass started from.

    Attributes:
        loss: the sum of its single numbers, a loss scale divided out; None where there was none.
        scale: the loss scale that it carried, or None.
    """

    loss: Any
    scale: Any


class LossMeter(threading.local):
    """Adds up losses between optimizer steps, those of each thread by themselves.

    Attributes:
        backwards: number of backward passes so far, in this thread.
        scale: the loss scale that the last of them carried; None for none.

    Example:
        >>> meter = LossMeter()
        >>> meter.saw([torch.tensor(0.5)], None)
        >>> meter.saw([torch.tensor(0.25)], None)
        >>> meter.of_step(), meter.of_step()
        (0.75, 0.75)
    """

    def __init__(self) -> None:
        self.backwards = 0
        self.scale: Any = None
        self._sum: Any = None
        self._fresh = False
        self._clip_norm: object = None
        self._scaled: tuple[weakref.ref[torch.Tensor], Any] | None = None

    def scaled(self, loss: Any, scale: Any) -> None:
        """Remember that a GradScaler made this tensor, by multiplying with its scale."""
        if isinstance(loss, torch.Tensor):
            self._scaled = (weakref.ref(loss), scale.detach().clone())

    def saw(self, tensors: Sequence[torch.Tensor], weights: Sequence[object] | None) -> None:
        """Add what one backward starts from.

        Args:
            tensors: its roots; only single numbers are losses.
            weights: ``grad_tensors``, or None.
        """
        plain = len(tensors) == 1 and weights is None and self._scaled is None
        loss = native.try_number(tensors[0]) if plain else None
        if loss is None:
            self.take(self.heard(tensors, weights))
        elif self._fresh:
            self._add(loss, None)
        else:
            self.backwards += 1
            self.scale, self._sum, self._fresh = None, loss, True

    def heard(self, tensors: Sequence[torch.Tensor], weights: Sequence[object] | None) -> Heard:
        """The loss and scale of one backward pass, without adding them to the sum."""
        scale: Any = None
        total: Any = None
        for index, tensor in enumerate(tensors):
            if not isinstance(tensor, torch.Tensor) or tensor.numel() != 1 or tensor.is_complex():
                continue
            of_this = self._scale_of(tensor)
            scale = scale if of_this is None else of_this
            value = _value(tensor, weights[index] if weights else None, of_this)
            if value is not None:
                total = value if total is None else total + value
        return Heard(total, scale)

    def take(self, heard: Heard) -> None:
        """Add the loss of one backward pass to the sum."""
        self._add(heard.loss, heard.scale)

    def _add(self, total: Any, scale: Any) -> None:
        self.backwards += 1
        self.scale = scale
        if total is None:
            return
        if self._fresh and self._clip_norm is not None:
            self._leave_out_dropped(self._clip_norm)
        if not self._fresh:
            self._sum, self._fresh = total, True
        elif self._sum is not None:  # not so where a part of it is unknown
            self._sum = self._sum + total

    def lost(self, scale: object) -> None:
        """Count a backward pass whose part in the loss is unknown, and with it the step's loss.

        Args:
            scale: the loss scale that it carried, or None.
        """
        self.backwards += 1
        self.scale, self._sum, self._fresh = scale, None, True

    def clipped_at(self, norm: object) -> None:
        """The gradients of the losses so far were clipped at this norm.

        Where it is not finite and another backward pass follows, the script has dropped that step,
        and with it those losses.
        """
        self._clip_norm = norm

    def _leave_out_dropped(self, norm: object) -> None:
        self._clip_norm = None
        if isinstance(norm, torch.Tensor) and norm.device.type != "cpu":
            if isinstance(self._sum, torch.Tensor):
                self._sum = torch.where(norm.isfinite(), self._sum, 0.0)
        elif isinstance(norm, (float, torch.Tensor)):
            self._fresh = math.isfinite(norm)

    @property
    def so_far(self) -> object:
        """The sum since the last step; None where no loss was seen."""
        return self._sum

    def of_step(self) -> Any:
        """The sum since the last step, a float or a tensor on a device; None where none was seen.

        Several optimizers that step after the same backward passes get the same sum.
        """
        self._fresh, self._clip_norm = False, None
        return self._sum

    def _scale_of(self, tensor: torch.Tensor) -> Any:
        """The scale by which a GradScaler multiplied this tensor; None where it did not."""
        return self._scaled[1] if self._scaled is not None and self._scaled[0]() is tensor else None


def _value(tensor: torch.Tensor, weight: Any, scale: Any) -> Any:
    if not isinstance(tensor, torch.nn.Parameter) and type(tensor) is not torch.Tensor:
        return _of_subclass(tensor, scale)
    if tensor.device.type == "cpu":
        value = float(tensor.detach())
        value = value if weight is None else value * float(weight.detach())
        return value if scale is None else value / float(scale)
    on_device = tensor.detach().to(torch.float64, copy=True).reshape(())  # may change in place
    if weight is not None:
        on_device = on_device * weight.detach().reshape(())
    return on_device if scale is None else on_device / scale


def _of_subclass(tensor: torch.Tensor, scale: object) -> Any:
    """A loss that is a DTensor, or a tensor of some other kind; None where it cannot be read."""
    try:
        value = float(whole(tensor.detach()))
        return value if scale is None else value / float(whole(scale))
    except Exception:  # whatever kind it is, the backward pass goes on
        return None


class StepLosses(Stamped):
    """The loss of the step under way, from whoever knows it.

    Attributes:
        heard: gives the loss since the last step; None where nobody hears.
        heard_so_far: the same, and goes on adding.
        added_up: the sum of what `tell` was given since the last step; None for nothing.
    """

    def __init__(self) -> None:
        self.heard: Callable[[], object] = _nothing_heard
        self.heard_so_far: Callable[[], object] = _nothing_heard
        self.added_up: Any = None

    def tell(self, value: object) -> None:
        """Add a loss."""
        self.added_up = value if self.added_up is None else self.added_up + value

    def so_far(self) -> object:
        """The loss of the step under way as far as it is known; None where it is not."""
        return self.heard_so_far() if self.added_up is None else self.added_up

    def take(self, of_closure: object) -> object:
        """The loss of this step: told by `tell`, else the closure's value, else heard."""
        loss, self.added_up = self.added_up, None
        heard = self.heard()  # asked for in any case: it then begins to sum anew
        loss = of_closure if loss is None else loss
        return heard if loss is None else loss


def _nothing_heard() -> None:
    return None


HEARD = LossMeter()
"""The losses that handles hear of, all of them."""


def _make(patches: PatchSet) -> None:
    patches.add(sites.BACKWARD.listen(_backward))
    patches.add(sites.SCALE.listen(_scale))


_hearing = PatchSet(_make)


def hear(hearer: object) -> Callable[[], object]:
    """Start adding up the losses on which `backward` is called.

    It ends with `forget`, or when the hearer is garbage-collected.

    Args:
        hearer: who hears; held weakly.

    Returns:
        A function that gives the loss since the last step, as `LossMeter.of_step` does.
    """
    _hearing.hold(hearer)
    HEARD.of_step()  # what was heard before, perhaps of another training, is not of its steps
    return HEARD.of_step


def so_far() -> object:
    """The loss since the last step, as `LossMeter.so_far`; the sum goes on."""
    return HEARD.so_far


def forget(hearer: object) -> None:
    """Stop adding up losses for a hearer; after the last one, torch's functions are as before."""
    _hearing.release(hearer)


def _backward(arguments: Arguments) -> Visit | None:
    if not _hearing.holders or sites.inside_backward():
        return None
    roots, weights = arguments[0], arguments[1]
    if isinstance(roots, (torch.Tensor, tuple, list)):
        HEARD.saw(sites.listed(roots), None if weights is None else sites.listed(weights))
    return None


class _Scaled(Visit):
    """One `GradScaler.scale`."""

    def returns(self, result: object) -> object:
        HEARD.scaled(result, self.arguments[0]._scale)
        return result


def _scale(arguments: Arguments) -> Visit | None:
    return _Scaled(arguments) if _hearing.holders and arguments[0].is_enabled() else None
