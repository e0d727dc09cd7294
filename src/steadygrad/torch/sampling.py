"""Figures beyond gradients that diagnoses need, measured at a few steps only.

Weight norms, update ratios, spectral radii and activation statistics would each
cost a read of weights or activations at every step, so they are taken at steps
0, 1, 2, 4, 8, ... and then once every `every` steps. Hooks on modules are global
(nothing is left in a module, so copies and pickles of a model stay as they are),
stand only during the forward pass of a step to be sampled, and not at all once
`torch.compile` is in use, where they would be traced. Everything is computed on
detached tensors; no random number is drawn.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils.hooks import RemovableHandle

from steadygrad.runlog.sampled import due, next_due, spectral_radius, stride

CALLS = 8
"""Calls of one module in a forward pass of which the activations are read."""

_RECURRENT = (torch.nn.RNN, torch.nn.RNNCell)
_ACTIVATIONS = (
    torch.nn.ReLU,
    torch.nn.LeakyReLU,
    torch.nn.GELU,
    torch.nn.Sigmoid,
    torch.nn.Tanh,
    torch.nn.Hardtanh,
)


class Sampler:
    """Measures one optimizer's weights, updates and activations on a schedule.

    Args:
        writer: an open `RunWriter`, or anything with `write_sample` and `update_info`.
        every: steps between samples, once the first ones are taken.

    Attributes:
        idle_before: the first step at which something is to be done again.

    Example:
        >>> class Print:
        ...     def write_sample(self, name, step, ids, values):
        ...         print(name, step, [float(f"{v:.2g}") for v in values])
        ...     def update_info(self, **facts): pass
        >>> weight = torch.nn.Parameter(torch.ones(4, 4))
        >>> sampler = Sampler(Print())
        >>> sampler.at_step(0, [weight], np.array([0]))
        weight_norm 0 [4.0]
        weight_std 0 [0.0]
        >>> weight.data *= 0.5
        >>> sampler.at_step(1, [weight], np.array([0]))
        update_ratio 0 [0.5]
        weight_norm 1 [2.0]
        weight_std 1 [0.0]
        >>> sampler.close()
    """

    def __init__(self, writer: Any, every: int = 64) -> None:
        self._writer = writer
        self._every = every
        self._before: tuple[int, NDArray[np.int64], list[torch.Tensor]] | None = None
        self._watch = _Watch()
        self._watch.start()
        self._said_frozen = False
        self.idle_before = 0

    def due(self, step: int) -> bool:
        """Whether a step is sampled."""
        return due(step, self._every)

    def at_step(self, step: int, params: Sequence[torch.Tensor], ids: NDArray[np.int64]) -> None:
        """Measure what is due; call it before the weights move, at every step from `idle_before`.

        Args:
            step: number of the step that is about to be applied.
            params: all parameters of the optimizer.
            ids: their numbers in the writer.
        """
        self._finish_update()
        if self.due(step):
            self._sample(step, params, ids)
        self._watch.stop()
        following = next_due(step + 1, self._every)
        if following == step + 1:
            self._watch.start()
        self.idle_before = following - 1 if self._before is None else step + 1

    def close(self) -> None:
        """Take the hooks off and measure the last sampled update."""
        self._watch.stop()
        self._finish_update()

    def take_seconds(self) -> float:
        """Time spent in forward hooks since the last call, which no caller's clock sees."""
        seconds, self._watch.seconds = self._watch.seconds, 0.0
        return seconds

    @torch.no_grad()
    def _sample(self, step: int, params: Sequence[torch.Tensor], ids: NDArray[np.int64]) -> None:
        if not self._said_frozen:
            frozen = [int(i) for p, i in zip(params, ids, strict=True) if not p.requires_grad]
            self._writer.update_info(frozen=frozen)
            self._said_frozen = True
        places = [i for i, p in enumerate(params) if _plain(p)]
        plain, known = [params[i].detach() for i in places], ids[places]
        if plain:
            taken = [_part(p) for p in plain]
            self._before = (step, known, taken)
            self._live = plain
            self._write("weight_norm", step, known, [_norm(p) for p in plain])
            self._write("weight_std", step, known, [_deviation(p) for p in taken])
        self._recurrent(step, params, ids)
        for name, table in self._watch.figures().items():
            found = [(i, table[id(p)]) for p, i in zip(params, ids, strict=True) if id(p) in table]
            if found:
                self._write(name, step, np.array([i for i, _ in found]), [v for _, v in found])

    def _recurrent(self, step: int, params: Sequence[torch.Tensor], ids: NDArray[np.int64]) -> None:
        lengths = self._watch.lengths()
        rows = [
            (i, p, lengths[id(p)]) for p, i in zip(params, ids, strict=True) if id(p) in lengths
        ]
        if rows:
            known = np.array([i for i, _, _ in rows])
            self._write("spectral_radius", step, known, [_radius(p) for _, p, _ in rows])
            self._write("recurrent_steps", step, known, [n for _, _, n in rows])

    def _finish_update(self) -> None:
        """The update of the last sampled step, over the size of the weights."""
        if self._before is None:
            return
        step, ids, before = self._before
        self._before = None
        with torch.no_grad():  # entered here: most steps have nothing to finish
            moved = [_norm(_part(now) - old) for now, old in zip(self._live, before, strict=True)]
            size = [_norm(old) for old in before]
        del self._live
        pairs = zip(_floats(moved), _floats(size), strict=True)
        ratios = [m / s if s > 0 else math.nan for m, s in pairs]
        if any(r > 0 for r in ratios):  # all zero: the step was skipped
            self._write("update_ratio", step, ids, ratios)

    def _write(self, name: str, step: int, ids: NDArray[np.int64], values: Sequence[Any]) -> None:
        # NaN means "not measured" in the file: what is not finite is written as inf
        array = np.array(_floats(values), np.float64)
        if name == "weight_norm":
            array[np.isnan(array)] = np.inf
        self._writer.write_sample(name, step, ids, array)


class _Watch:
    """Global forward hooks that note activations by the parameter that made them."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._handles: list[RemovableHandle] = []
        self._clear()

    def _clear(self) -> None:
        self._figures: dict[str, dict[int, Any]] = {
            "activation_zero": {},
            "activation_saturated": {},
            "activation_std": {},
        }
        self._calls: dict[int, int] = {}
        self._lengths: dict[int, int] = {}
        self._last: torch.Tensor | None = None
        self._convolved = False

    def start(self) -> None:
        """Begin to watch, unless a compiler would trace the hooks."""
        self._clear()
        if not self._handles and not _compiling():
            self._handles = [
                register_module_forward_pre_hook(self._timed(self._enter)),
                register_module_forward_hook(self._timed(self._leave)),
            ]

    def stop(self) -> None:
        """Take the hooks off; what was seen stays until the next start."""
        while self._handles:
            self._handles.pop().remove()

    def figures(self) -> dict[str, dict[int, Any]]:
        """Name to {id of the parameter: figure}."""
        return self._figures

    def lengths(self) -> dict[int, int]:
        """Id of each recurrent matrix to the number of its applications in a forward pass."""
        return {**{p: n for p, n in self._calls.items() if n > 2}, **self._lengths}

    def _timed(self, note: Callable[..., None]) -> Callable[..., None]:
        def hook(module: torch.nn.Module, *rest: Any) -> None:
            if not torch.is_grad_enabled():
                return
            began = time.perf_counter()
            with torch.no_grad():
                note(module, *rest)
            self.seconds += time.perf_counter() - began

        return hook

    def _enter(self, module: torch.nn.Module, args: Any) -> None:
        """A layer's input is the activation of the layer before it."""
        if _matrix(module) is not None and self._last is not None and args:
            self._note(args[0])

    def _leave(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        if isinstance(module, _ACTIVATIONS):
            self._note(output)
            return
        matrix = _matrix(module)
        if matrix is None:
            return
        self._last = matrix
        self._convolved = isinstance(module, torch.nn.modules.conv._ConvNd)
        if isinstance(module, _RECURRENT):
            self._recurrent(module, args)
            self._note(output[0] if isinstance(output, tuple) else output)
        elif matrix.shape[0] == matrix.shape[-1] and matrix.dim() == 2:
            self._calls[id(matrix)] = self._calls.get(id(matrix), 0) + 1
        if isinstance(output, torch.Tensor) and output.is_floating_point() and output.numel() > 1:
            self._figures["activation_std"][id(matrix)] = output.detach().float().std()

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
        usable = isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() > 1
        if not usable or not value.requires_grad or not value.numel() or self._last is None:
            return
        key = id(self._last)
        if self._calls.get(key, 0) > CALLS:
            return
        units = value.detach().float()
        units = units.movedim(1, -1) if self._convolved else units
        units = units.reshape(-1, units.shape[-1])
        self._figures["activation_zero"][key] = (units == 0).all(dim=0).float().mean()
        self._figures["activation_saturated"][key] = _saturation(units)


def _saturation(units: torch.Tensor) -> torch.Tensor:
    """Share at the flat ends of a tanh or sigmoid; 0 for what is neither, by its range."""
    low, high = units.min(), units.max()
    bounded = (low >= -1) & (high <= 1)
    # exact zeros below an exact 1 are a ReLU's: a sigmoid reaches 1 first
    sigmoid = (low >= 0) & ((low > 0) | (high == 1))
    ends = torch.where(
        sigmoid,
        ((units < 0.01) | (units > 0.99)).float().mean(),
        (units.abs() > 0.99).float().mean(),
    )
    return torch.where(bounded & (sigmoid | (low < 0)), ends, torch.zeros_like(ends))


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


def _plain(parameter: torch.Tensor) -> bool:
    """Whether a parameter can be read here without a collective and in full."""
    kind = type(parameter)
    known = kind in (torch.Tensor, torch.nn.Parameter) and not parameter.is_meta
    return known and parameter.is_floating_point() and parameter.numel() > 0


def _part(parameter: torch.Tensor) -> torch.Tensor:
    """At most `TAKEN` of the elements, evenly spread, copied."""
    flat = parameter.reshape(-1)
    return flat[:: stride(flat.numel())].double().clone()


def _norm(tensor: torch.Tensor) -> torch.Tensor:
    norm: torch.Tensor = torch.linalg.vector_norm(tensor, dtype=torch.float64)
    return norm


def _deviation(part: torch.Tensor) -> torch.Tensor:
    return part.std(correction=0)


def _radius(matrix: torch.Tensor) -> float:
    return spectral_radius(matrix.detach().double().cpu().numpy())


def _compiling() -> bool:
    """Whether `torch.compile` has been used in this process."""
    frames = sys.modules.get("torch._dynamo.eval_frame")
    backends = getattr(frames, "cached_backends", None) or {}
    return any(backend is not None for backend in backends.values())


def _floats(values: Sequence[Any]) -> list[float]:
    """Numbers of 0-d tensors, with one transfer a device."""
    if not any(isinstance(v, torch.Tensor) for v in values):
        return [float(v) for v in values]
    if len({v.device for v in values if isinstance(v, torch.Tensor)}) == 1 and all(
        isinstance(v, torch.Tensor) for v in values
    ):
        return [float(v) for v in torch.stack(list(values)).tolist()]
    return [float(v) for v in values]
