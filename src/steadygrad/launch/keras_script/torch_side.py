"""How a step's figures leave Keras on torch: it compiles nothing, so they are there at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, SupportsFloat, cast

import numpy as np
import torch
from numpy.typing import NDArray

from steadygrad.launch.track import CALL, MOST_CALLS, Track

if TYPE_CHECKING:
    from steadygrad.launch.contracts import RunContext

Floats = NDArray[np.float64]


class _HasValue(Protocol):
    value: torch.Tensor


class TorchSide:
    """Figures of a torch step are there at once.

    Args:
        session: the run, whose own observer of torch hears the losses.
    """

    def __init__(self, session: RunContext) -> None:
        self._session = session

    def number(self, value: object) -> float:
        """Any scalar."""
        return float(cast(SupportsFloat, getattr(value, "value", value)))

    def loss(self, value: object, variables: Sequence[object], beside: object) -> float:
        """What was scaled, or what the torch observer saw backward called on."""
        heard = math.nan
        for observer in self._session.observers:
            if hasattr(observer, "kept_elsewhere"):
                heard = observer.kept_elsewhere([cast(_HasValue, v).value for v in variables])
        return self.number(heard if value is None else value)

    def head(self, batch: Sequence[float], calls: Sequence[float]) -> Floats:
        """The first numbers of a row."""
        return np.array([*map(float, batch), *[math.nan] * (MOST_CALLS * len(CALL))])

    def body(
        self,
        step: Sequence[float],
        leaves: Sequence[torch.Tensor],
        places: Sequence[int],
        tensors: int,
    ) -> Floats:
        """The rest of a row."""
        rows = np.full((len(leaves), tensors), math.nan)
        for row, figure in zip(rows, leaves, strict=True):
            row[list(places)] = figure.detach().cpu().numpy()
        return np.concatenate([[float(x) for x in step], rows.ravel()])

    def when(self, kind: object, body: Callable[[], Floats], width: int) -> Floats:
        """``body()`` where a step is taken."""
        return body() if kind else np.full(width, math.nan)

    def joined(self, head: Floats, body: Floats) -> Floats:
        """A whole row."""
        return np.concatenate([head, body])

    def ring(self, width: int) -> None:
        """Rows are handed over at once."""

    def emit(self, track: Track, row: Floats) -> None:
        """Hand a row over."""
        track.push(row)

    def settle(self) -> None:
        """Nothing is under way."""
