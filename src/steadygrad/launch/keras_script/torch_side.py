"""How a step's figures leave Keras on torch: it compiles nothing, so they are there at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, SupportsFloat, cast, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from steadygrad.launch.track import CALL, MOST_CALLS, Track
from steadygrad.policies.stepping import CLIP, NONE
from steadygrad.stats import GradientStats

if TYPE_CHECKING:
    from steadygrad.launch.contracts import RunContext

Floats = NDArray[np.float64]


class _HasValue(Protocol):
    value: torch.Tensor


@runtime_checkable
class HearsBackward(Protocol):
    """An observer that hears the losses of torch's `backward`."""

    def kept_elsewhere(self, parameters: list[torch.Tensor]) -> float:
        """The loss since these parameters' last step; NaN where none was heard."""


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
            if isinstance(observer, HearsBackward):
                heard = observer.kept_elsewhere([cast(_HasValue, v).value for v in variables])
        return self.number(heard if value is None else value)

    def clipped(
        self, track: Track, variables: Sequence[object], names: tuple[str, ...]
    ) -> tuple[GradientStats, list[float]] | None:
        """Figures before the script's clip calls, and what they left; None where none was made."""
        parameters = [cast(_HasValue, v).value for v in variables]
        for observer in self._session.observers:
            if hasattr(observer, "clipped_elsewhere"):
                left = observer.clipped_elsewhere(parameters, names, track.steps, track.index)
                if left is not None:
                    coef, cosine, clipped = left.applied
                    action = CLIP if bool(clipped) else NONE
                    return left.stats, [float(x) for x in (left.threshold, coef, cosine, action)]
        return None

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
            row[list(places)] = torch.as_tensor(figure).detach().cpu().numpy()
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
