"""Activations of one forward pass, by the parameter that made them.

Hooks on modules are global (nothing is left in a module, so copies and pickles of a model stay as
they are), stand only during the forward pass of a step to be sampled, and not at all once
`torch.compile` is in use, where they would be traced. Figures are of detached tensors, and
of an evenly spread part where an activation is large.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch

from steadygrad.kernels import native
from steadygrad.torch.internals.modes import unseen
from steadygrad.torch.internals.module_hooks import ModuleHooks, is_traced
from steadygrad.torch.internals.private import CONVOLUTION
from steadygrad.torch.record.through_time import ThroughTime

CALLS = 8
"""Calls of one module in a forward pass of which the activations are read."""
FEW = 4
"""Calls of a square layer in one step that are none of a loop over time: a critic is called for
real data, for made ones, and for a penalty on both, too."""
ELEMENTS = 1 << 13
"""Of an activation, of which deviation and saturation are taken."""

_RECURRENT = (torch.nn.RNN, torch.nn.RNNCell)
_ACTIVATIONS = (
    torch.nn.ReLU,
    torch.nn.LeakyReLU,
    torch.nn.GELU,
    torch.nn.Sigmoid,
    torch.nn.Tanh,
    torch.nn.Hardtanh,
)


class ActivationWatch:
    """Global forward hooks that note activations.

    Attributes:
        seconds: spent in them, which no caller's clock sees.
        through_time: the recurrent layers that were seen.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._own: set[int] | None = None
        self.through_time = ThroughTime()
        self._hooks = ModuleHooks()
        weakref.finalize(self, self._hooks.remove).atexit = False
        own = type(self)
        self._around = self._timed(own._enter), self._timed(own._leave)
        self._clear()

    def _clear(self) -> None:
        self.through_time.clear()
        self._figures: dict[str, dict[int, Any]] = {
            "activation_zero": {},
            "activation_saturated": {},
            "activation_std": {},
        }
        self._calls: dict[int, int] = {}
        self._lengths: dict[int, int] = {}
        self._last: torch.Tensor | None = None
        self._convolved = False
        self._noted: Callable[[], object] = _nothing

    def start(self, params: Sequence[torch.Tensor] | None = None) -> None:
        """Begin to watch, unless a compiler would trace the hooks.

        Args:
            params: of whose modules activations are read: those of another optimizer's are its
                own watch's. None for any.
        """
        self._clear()
        self._own = None if params is None else set(map(id, params))
        self._hooks.put(*self._around)

    def stop(self) -> None:
        """Take the hooks off; what was seen stays until the next start."""
        self._hooks.remove()

    def figures(self) -> dict[str, dict[int, Any]]:
        """The figures by their name; of each, one number a parameter, by the parameter's id."""
        return self._figures

    def lengths(self) -> dict[int, int]:
        """How often a forward pass applied each recurrent matrix, by the matrix's id."""
        return {**{p: n for p, n in self._calls.items() if n > FEW}, **self._lengths}

    def _timed(self, note: Callable[..., None]) -> Callable[..., None]:
        note = unseen(note)
        seen_by = weakref.ref(self)  # torch's list of hooks would keep it for good

        def hook(module: torch.nn.Module, *rest: object) -> None:
            if is_traced():  # by a compiler that came after the hook
                return
            watch = seen_by()
            if watch is None or not torch.is_grad_enabled():
                return
            began = time.perf_counter()
            try:
                note(watch, module, *rest)
            except Exception:  # whatever a module of the script returns, its forward pass goes on
                watch.stop()
            watch.seconds += time.perf_counter() - began

        return hook

    def _enter(self, module: torch.nn.Module, args: Any) -> None:
        """A layer's input is the activation of the layer before it."""
        seen = not args or self._last is None or self._noted() is args[0]
        if not seen and _matrix(module) is not None:
            self._note(args[0])

    def _leave(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        kind = _kinds.get(type(module)) or _kind_of(type(module))
        if kind == _ACTIVATION:
            self._note(output)
            return
        if kind == _LAYER_IN_TIME:
            with torch.no_grad():
                self.through_time.saw(module, args, output)
        matrix = _matrix(module)
        if matrix is None:
            return
        key = id(matrix)
        if self._own is not None and key not in self._own:
            self._last = None
            return
        self._last = matrix
        self._convolved = kind == _CONVOLUTION
        if isinstance(module, _RECURRENT):
            self._recurrent(module, args)
            self._note(output[0] if isinstance(output, tuple) else output)
        elif matrix.shape[0] == matrix.shape[-1] and matrix.dim() == 2:
            self._calls[key] = self._calls.get(key, 0) + 1
        deviation: object = native.try_deviation(output, ELEMENTS)
        if deviation is None and _readable(output) and output.numel() > 1:
            deviation = _rows(output.detach()).float().std()
        if deviation is not None:
            self._figures["activation_std"][key] = deviation

    def _recurrent(self, module: torch.nn.Module, args: Any) -> None:
        assert isinstance(module, torch.nn.RNN | torch.nn.RNNCell)
        if isinstance(module, torch.nn.RNNCell):
            self._last = module.weight_hh
            self._calls[id(module.weight_hh)] = self._calls.get(id(module.weight_hh), 0) + 1
            return
        for layer in range(module.num_layers):
            matrix = getattr(module, f"weight_hh_l{layer}")
            self._lengths[id(matrix)] = _length(args[0], module.batch_first)
            self._last = matrix

    def _note(self, value: Any) -> None:
        """Figures of an activation, for the last matrix that ran."""
        if self._noted() is value:  # an activation module's output is the next layer's input
            return
        if (
            not _readable(value)
            or value.dim() < 2
            or not value.requires_grad
            or not value.numel()
            or self._last is None
        ):
            return
        self._noted = weakref.ref(value)
        key = id(self._last)
        if self._calls.get(key, 0) > CALLS:
            return
        zero, saturated = (
            native.try_units(value, 1 if self._convolved else -1, ELEMENTS)
            or _of_units(value.detach().float(), self._convolved)
        )  # fmt: skip
        self._figures["activation_zero"][key] = zero
        self._figures["activation_saturated"][key] = saturated


_ACTIVATION, _LAYER_IN_TIME, _CONVOLUTION, _OTHER = range(1, 5)
_kinds: dict[type, int] = {}
"""Class of a module to what it is here: asked at every call of a sampled forward pass."""


def _kind_of(module: type[torch.nn.Module]) -> int:
    kind = _OTHER
    if issubclass(module, _ACTIVATIONS):
        kind = _ACTIVATION
    elif issubclass(module, torch.nn.RNNBase):
        kind = _LAYER_IN_TIME
    elif issubclass(module, CONVOLUTION):
        kind = _CONVOLUTION
    _kinds[module] = kind
    return kind


def _of_units(units: torch.Tensor, convolved: bool) -> tuple[object, object]:
    """Shares of an activation's units that are 0 everywhere, and that are at flat ends."""
    units = units.movedim(1, -1) if convolved else units
    units = units.reshape(-1, units.shape[-1])
    return (units.abs().amax(dim=0) == 0).float().mean(), _saturation(_rows(units))


def _readable(value: Any) -> bool:
    """Whether it is an ordinary tensor: no piece, quantised or nested one."""
    return type(value) in (torch.Tensor, torch.nn.Parameter) and value.is_floating_point()


def _nothing() -> None:
    return None


def _rows(value: torch.Tensor) -> torch.Tensor:
    """Evenly spread rows of at most about `ELEMENTS` elements together."""
    count = value.numel() // value.shape[0]
    return value[:: -(-value.shape[0] // max(1, ELEMENTS // max(1, count)))]


def _saturation(units: torch.Tensor) -> torch.Tensor:
    """Share at the flat ends of a tanh or sigmoid; 0 for what is neither, by its range."""
    low, high = torch.aminmax(units)
    bounded = (low >= -1) & (high <= 1)
    # exact zeros below an exact 1 are a ReLU's: a sigmoid reaches 1 first
    sigmoid = bounded & (low >= 0) & ((low > 0) | (high == 1))
    tanh = bounded & (low < 0)
    ends = torch.where(sigmoid, _sigmoid_ends(units), _tanh_ends(units))
    return torch.where(sigmoid | tanh, ends, torch.zeros_like(ends))


def _sigmoid_ends(units: torch.Tensor) -> torch.Tensor:
    return ((units - 0.5).abs_() > 0.49).float().mean()


def _tanh_ends(units: torch.Tensor) -> torch.Tensor:
    return (units.abs() > 0.99).float().mean()


def _matrix(module: torch.nn.Module) -> torch.Tensor | None:
    """The module's own weight of two axes or more; None for containers and normalisation."""
    weight = module._parameters.get("weight")
    if weight is None and isinstance(module, _RECURRENT):
        weight = module._parameters.get("weight_hh_l0", module._parameters.get("weight_hh"))
    return weight if weight is not None and weight.dim() > 1 else None


def _length(value: Any, batch_first: bool) -> int:
    if isinstance(value, torch.nn.utils.rnn.PackedSequence):
        return len(value.batch_sizes)
    return int(value.shape[1 if batch_first and value.dim() == 3 else 0])
