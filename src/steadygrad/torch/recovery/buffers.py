"""A model's buffers as they were before the step under way.

A forward pass moves the running statistics of a BatchNorm before anybody has seen a loss: a step
that is dropped must take that back. Small buffers are copied after every step; torch does not count
what a BatchNorm writes. Large ones are copied where their version has changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch.nn.parameter import is_lazy

from steadygrad.torch.gradients.pieces import local
from steadygrad.torch.internals.alive import alive
from steadygrad.torch.internals.private import NORMALISATION

JUMP = 1000.0
"""Times its own variance over which a running statistic moves in a step whose inputs are broken."""
ENOUGH = 24
"""Steps before which running statistics are still on their way."""
SMALL = 65536
"""Elements of a buffer that is copied after every step."""


class Buffers:
    """Copies of the buffers of some modules.

    Args:
        modules: whose buffers; of each its own alone.

    Example:
        >>> norm = torch.nn.BatchNorm1d(2)
        >>> buffers = Buffers([norm])
        >>> _ = norm(torch.full((3, 2), torch.inf))
        >>> buffers.put_back()
        >>> norm.running_mean
        tensor([0., 0.])
    """

    def __init__(self, modules: Sequence[torch.nn.Module]) -> None:
        self._places = [(module, name) for module in modules for name in module._buffers]
        self._copies: list[torch.Tensor | None] = [None] * len(self._places)
        self._versions = [-1] * len(self._places)
        at = {(id(module), name): place for place, (module, name) in enumerate(self._places)}
        self._statistics = [
            (module.eps, at[id(module), "running_mean"], at[id(module), "running_var"])
            for module in modules
            if isinstance(module, NORMALISATION) and module.track_running_stats
        ]
        self._noted = 0
        self.note()
        # an attention mask holds -inf all its life
        self._meant = [copy is not None and not all_finite([copy]) for copy in self._copies]

    def note(self) -> None:
        """Copy them as they are now."""
        self._noted += 1
        for index, (module, name) in enumerate(self._places):
            buffer, copy = _buffer(module, name), self._copies[index]
            if buffer is None:
                self._copies[index] = None
            elif copy is None or _kind(copy) != _kind(buffer):
                self._copies[index] = buffer.detach().clone()
            elif buffer.numel() <= SMALL or _version(buffer) != self._versions[index]:
                copy.copy_(buffer.detach())
            self._versions[index] = -1 if buffer is None else _version(buffer)

    def jumped(self) -> bool:
        """Whether running statistics have moved since then as no sound batch moves them.

        A layer that normalises hides from loss and norm that all of its inputs are too large.
        """
        if self._noted <= ENOUGH:
            return False
        moves = [self._jump(*each) for each in self._statistics]
        jumps = [each for each in moves if each is not None]
        return bool(jumps) and bool(torch.stack([j.to(jumps[0].device) for j in jumps]).any())

    def _jump(self, eps: float, mean: int, var: int) -> torch.Tensor | None:
        """Whether one layer's have, 0-d; None where it has none now, or others."""
        before, spread = self._copies[mean], self._copies[var]
        now, wider = (_buffer(*self._places[each]) for each in (mean, var))
        if before is None or spread is None or now is None or wider is None:
            return None
        if before.shape != now.shape or spread.shape != wider.shape:
            return None
        shift = (now - before).float().square().sum()
        return torch.maximum(shift, wider.float().sum()) > JUMP * (spread + eps).float().sum()

    def copies(self) -> list[torch.Tensor | None]:
        """What was noted last, to keep."""
        return [None if copy is None else copy.clone() for copy in self._copies]

    def are_sound(self, copies: Sequence[torch.Tensor | None]) -> bool:
        """Whether none has a NaN or inf that was finite when the training began."""
        paired = zip(copies, self._meant, strict=True)
        return all_finite(copy for copy, meant in paired if not meant)

    def put_back(self, copies: Sequence[torch.Tensor | None] | None = None) -> None:
        """Write copies into the buffers.

        Args:
            copies: from `copies`; None for those noted last.
        """
        chosen = self._copies if copies is None else copies
        with torch.no_grad():
            for (module, name), copy in zip(self._places, chosen, strict=True):
                buffer = _buffer(module, name)
                if buffer is not None and copy is not None and buffer.shape == copy.shape:
                    _write(buffer, copy)


def _buffer(module: torch.nn.Module, name: str) -> torch.Tensor | None:
    """A buffer; None where it is not there, or has no shape yet."""
    buffer = module._buffers.get(name)
    return None if buffer is None or is_lazy(buffer) else buffer


def _kind(buffer: torch.Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return buffer.shape, buffer.dtype, buffer.device


def _version(buffer: torch.Tensor) -> int:
    return -2 if buffer.is_inference() else buffer._version


def _write(buffer: torch.Tensor, copy: torch.Tensor) -> None:
    strides = buffer.stride() if buffer.layout is torch.strided else ()
    if 0 in strides and buffer.numel() > 1:  # elements that share memory: torch writes none
        return
    with torch.inference_mode(buffer.is_inference()):
        buffer.copy_(copy)


def all_finite(tensors: Iterable[torch.Tensor | None]) -> bool:
    """Whether no element of any of them is NaN or inf."""
    inexact = [t for t in tensors if t is not None and (t.is_floating_point() or t.is_complex())]
    return all(_is_finite(part) for part in local([t.detach() for t in inexact]))


def _is_finite(part: torch.Tensor) -> bool:
    if part.is_meta:
        return True
    if part.layout is not torch.strided:
        part = part.to_sparse().coalesce().values()
    if part.is_floating_point() and part.element_size() == 1:  # no arithmetic is there for float8
        part = part.float()
    return bool(torch.isfinite(part).all())


def modules_of(
    model: torch.nn.Module | None, parameters: Sequence[torch.Tensor]
) -> list[torch.nn.Module]:
    """The modules whose buffers a training moves.

    Args:
        model: all of its modules; None for those that hold one of the parameters.
        parameters: an optimizer's.
    """
    if model is not None:
        return list(model.modules())
    own = {id(parameter) for parameter in parameters}
    return [
        module
        for module in alive(torch.nn.Module)
        # one that is being made has none yet
        if any(id(p) in own for p in getattr(module, "_parameters", {}).values())
    ]
