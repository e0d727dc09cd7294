"""What each rank of a job saw of an optimizer's steps, as a table of steps by ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steadygrad.rules.evidence.steps import Array
from steadygrad.rules.evidence.view import View
from steadygrad.vocabulary import RANKS

_FIGURES = ("loss", "loss_known", "nonfinite", "seconds", "busy", "norm", "own_norm")
PIECE = 1e-6
"""Share of a norm by which it differs from that of all ranks only where others hold some of it."""


@dataclass(frozen=True)
class RankTable:
    """Figures ``[steps, ranks]``, NaN where a rank did not tell.

    Attributes:
        steps: numbers of the steps, in order, ``[steps]``.
        ranks: numbers of the ranks, in order, ``[ranks]``.
        loss: of the rank itself.
        loss_known: 1 where somebody told it, so that NaN is one.
        nonfinite: NaN and inf elements in what the rank holds.
        seconds: since its last step.
        busy: of these, what the rank spent by itself.
        norm: of the gradients as a whole.
        own_norm: of what the rank holds of them.
    """

    steps: Array
    ranks: Array
    loss: Array
    loss_known: Array
    nonfinite: Array
    seconds: Array
    busy: Array
    norm: Array
    own_norm: Array

    @property
    def in_pieces(self) -> bool:
        """Whether a rank holds a part of the summed gradients, and not gradients of its own."""
        finite = np.isfinite(self.norm) & np.isfinite(self.own_norm)
        return bool((np.abs(self.norm - self.own_norm)[finite] > PIECE * self.norm[finite]).any())

    @property
    def complete(self) -> Array:
        """Which steps all ranks told of, ``[steps]``."""
        return np.asarray(np.isfinite(self.nonfinite).all(axis=1))


def rank_table(view: View) -> RankTable | None:
    """What the ranks told; None where fewer than two did.

    Args:
        view: one optimizer's steps; those that a rollback took back are left out.
    """
    rows = list(_rows(view))
    steps = np.unique([int(row["step"]) for row in rows]).astype(np.int64)
    ranks = np.unique([int(row["rank"]) for row in rows]).astype(np.int64)
    steps = steps[~view.taken_back(steps)] if len(steps) else steps
    if len(ranks) < 2 or not len(steps):
        return None
    at = {int(step): place for place, step in enumerate(steps)}
    of = {int(rank): place for place, rank in enumerate(ranks)}
    figures = {name: np.full((len(steps), len(ranks)), math.nan) for name in _FIGURES}
    for row in rows:
        place = at.get(int(row["step"]))
        if place is not None:
            for name in _FIGURES:
                figures[name][place, of[int(row["rank"])]] = row[name]
    return RankTable(steps, ranks, **figures)


def _rows(view: View) -> Iterator[Mapping[str, float]]:
    names = ("step", "rank", *_FIGURES)
    for event in view.events(RANKS):
        columns: list[Sequence[Any]] = [event.data.get(name, ()) for name in names]
        if len(set(map(len, columns))) != 1:  # of an older version, or damaged
            continue
        for values in zip(*columns, strict=True):
            row = {
                name: math.nan if value is None else float(value)
                for name, value in zip(names, values, strict=True)
            }
            if math.isfinite(row["step"]) and math.isfinite(row["rank"]):
                yield row


def named(ranks: Sequence[int]) -> str:
    """``Rank 3``, or ``Ranks 3, 5 and 7``.

    Example:
        >>> named([3]), named([3, 5])
        ('Rank 3', 'Ranks 3 and 5')
    """
    words = [str(int(rank)) for rank in ranks]
    if len(words) == 1:
        return f"Rank {words[0]}"
    return f"Ranks {', '.join(words[:-1])} and {words[-1]}"
