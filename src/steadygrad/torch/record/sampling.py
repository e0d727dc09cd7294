"""Figures beyond gradients that diagnoses need, measured at a few steps only.

Weight norms, update ratios, spectral radii and activation statistics would each
cost a read of weights or activations at every step, so they are taken at steps
0, 1, 2, 4, 8, ... and then once every `every` steps. Weight norms are exact; what needs a copy
of the weights is taken of an evenly spread part of each, all parts side by side in one array.
No random number is drawn.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steadygrad import kernels
from steadygrad.kernels import native
from steadygrad.runlog.sampled import (
    TAKEN,
    Floats,
    UnusualSteps,
    WeightFigures,
    due,
    next_due,
    spectral_radius,
    stride,
)
from steadygrad.torch.record.activations import ActivationWatch
from steadygrad.torch.record.through_time import POSITIONS
from steadygrad.vocabulary import THROUGH_TIME


class Sampler:
    """Measures one optimizer's weights, updates and activations on a schedule.

    Args:
        writer: an open `RunWriter`, or anything with its `write_sample`, `write_event` and
            `update_info`.
        every: steps between samples, once the first ones are taken.

    Attributes:
        idle_before: the first step at which something is to be done again.
        unusual: says after which steps the next update is measured too.

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
        self._figures = WeightFigures(writer)
        self._weights: list[torch.Tensor] = []
        self._watch = ActivationWatch()
        self._watch.start()
        self._said_frozen = False
        self.unusual = UnusualSteps()
        self._wanted = False
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
        self.before_update(step, params, ids)
        self.after_forward(step, params, ids)

    def before_update(
        self, step: int, params: Sequence[torch.Tensor], ids: NDArray[np.int64]
    ) -> None:
        """The part of `at_step` that reads weights: before anything moves them."""
        self._finish_update()
        if self.due(step):
            self._sample_weights(step, params, ids)
        elif self._wanted:
            self._watch_update(step, params, ids)
        self._wanted = False

    def notice(self, step: int, norm: float, loss: float) -> None:
        """A step is over: after an unusual one, the next updates are measured too.

        Args:
            step: its number.
            norm: its gradient norm, before clipping.
            loss: its loss; NaN where unknown.
        """
        if self.unusual.after(step, norm, loss) and self.idle_before < sys.maxsize:
            self._wanted = True
            self.idle_before = min(self.idle_before, step + 1)

    def after_forward(
        self, step: int, params: Sequence[torch.Tensor], ids: NDArray[np.int64]
    ) -> None:
        """The part of `at_step` that reads what forward passes left."""
        if self.due(step):
            self._sample_activations(step, params, ids)
        self._watch.stop()
        following = next_due(step + 1, self._every)
        if following == step + 1:
            self._watch.start(params)
        self.idle_before = step + 1 if self._figures.waits else following - 1

    def close(self) -> None:
        """Take the hooks off and measure the last sampled update."""
        self._watch.stop()
        self._finish_update()

    def give_up(self) -> None:
        """Sample nothing any more."""
        self._watch.stop()
        self._figures, self._weights = WeightFigures(self._writer), []
        self.idle_before = sys.maxsize

    def take_seconds(self) -> float:
        """Time spent in forward hooks since the last call, which no caller's clock sees."""
        seconds, self._watch.seconds = self._watch.seconds, 0.0
        return seconds

    @torch.no_grad()
    def _sample_weights(
        self, step: int, params: Sequence[torch.Tensor], ids: NDArray[np.int64]
    ) -> None:
        if not self._said_frozen:
            frozen = [int(i) for p, i in zip(params, ids, strict=True) if not p.requires_grad]
            self._writer.update_info(frozen=frozen)
            self._said_frozen = True
        places = [i for i, p in enumerate(params) if _plain(p)]
        plain, known_ids = [params[i].detach() for i in places], ids[places]
        if plain:
            starts = np.cumsum([0, *(_taken(p) for p in plain[:-1])])
            norms = np.array(kernels.read(plain).norms, np.float64)
            self._figures.write(step, known_ids, norms, _parts(plain), starts)
            self._weights = plain

    @torch.no_grad()
    def _watch_update(
        self, step: int, params: Sequence[torch.Tensor], ids: NDArray[np.int64]
    ) -> None:
        places = [i for i, p in enumerate(params) if _plain(p)]
        self._weights = [params[i].detach() for i in places]
        if places:
            starts = np.cumsum([0, *(_taken(p) for p in self._weights[:-1])])
            self._figures.watch(step, ids[places], _parts(self._weights), starts)

    @torch.no_grad()
    def _sample_activations(
        self, step: int, params: Sequence[torch.Tensor], ids: NDArray[np.int64]
    ) -> None:
        self._recurrent(step, params, ids)
        self._through_time(step, params, ids)
        for name, table in self._watch.figures().items():
            watched = [
                (i, table[id(p)]) for p, i in zip(params, ids, strict=True) if id(p) in table
            ]
            if watched:
                self._write(name, step, np.array([i for i, _ in watched]), [v for _, v in watched])

    def _recurrent(self, step: int, params: Sequence[torch.Tensor], ids: NDArray[np.int64]) -> None:
        lengths = self._watch.lengths()
        rows = [
            (i, p, lengths[id(p)])
            for p, i in zip(params, ids, strict=True)
            if id(p) in lengths and _plain(p)
        ]
        if rows:
            places_of_rows = np.array([i for i, _, _ in rows])
            self._write("spectral_radius", step, places_of_rows, [_radius(p) for _, p, _ in rows])
            self._write("recurrent_steps", step, places_of_rows, [n for _, _, n in rows])

    def _through_time(
        self, step: int, params: Sequence[torch.Tensor], ids: NDArray[np.int64]
    ) -> None:
        """The gradient at each time step of the recurrent layers, as an event of each."""
        numbers = {id(p): int(i) for p, i in zip(params, ids, strict=True)}
        for matrix, norms in self._watch.through_time.profiles():
            if id(matrix) in numbers and np.isfinite(norms).all():
                places = np.unique(np.linspace(0, len(norms) - 1, POSITIONS).astype(int)).tolist()
                data = {
                    "tensor": numbers[id(matrix)],
                    "length": len(norms),
                    "positions": places,
                    "norms": [float(f"{norms[place]:.4g}") for place in places],
                }
                self._writer.write_event(THROUGH_TIME, data, step)

    def _finish_update(self) -> None:
        """The update of the last sampled step, over the size of the weights."""
        if self._figures.waits:
            self._figures.finish(_parts(self._weights))
            self._weights = []

    def _write(self, name: str, step: int, ids: NDArray[np.int64], values: Any) -> None:
        self._writer.write_sample(name, step, ids, np.array(_floats(values), np.float64))


def _plain(parameter: torch.Tensor) -> bool:
    """Whether a parameter can be read here without a collective and in full."""
    kind = type(parameter)
    is_plain = kind in (torch.Tensor, torch.nn.Parameter) and not parameter.is_meta
    return is_plain and parameter.is_floating_point() and parameter.numel() > 0


def _taken(parameter: torch.Tensor) -> int:
    """How many elements stand for a parameter."""
    size = parameter.numel()
    return -(-size // stride(size))


def _parts(parameters: Sequence[torch.Tensor]) -> Floats:
    """The elements that stand for parameters, side by side: a copy, with one transfer a device."""
    taken = native.try_parts(list(parameters), TAKEN)
    if taken is not None:
        return taken
    with torch.no_grad():
        flat = [p.reshape(-1)[:: stride(p.numel())] for p in parameters]
        if len({piece.device for piece in flat}) > 1:
            flat = [piece.cpu() for piece in flat]
        together: Floats = torch.cat(flat).to(torch.float64).cpu().numpy()
    return together


def _radius(matrix: torch.Tensor) -> float:
    return spectral_radius(matrix.detach().double().cpu().numpy())


def _floats(values: Sequence[Any]) -> list[float]:
    """Numbers of 0-d tensors, with one transfer a device."""
    if not any(isinstance(v, torch.Tensor) for v in values):
        return [float(v) for v in values]
    if len({v.device for v in values if isinstance(v, torch.Tensor)}) == 1 and all(
        isinstance(v, torch.Tensor) for v in values
    ):
        return [float(v) for v in torch.stack(list(values)).tolist()]
    return [float(v) for v in values]
