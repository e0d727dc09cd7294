"""How the figures of one traced step leave it: what every array library is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from steadygrad.launch.track import DeviceRows, Track

Array = TypeVar("Array")


class Side(Protocol[Array]):
    """How figures leave a step; arrays are the library's, in the widest float it has."""

    def number(self, value: object) -> Array:
        """Any scalar as a 0-d array; NaN where it cannot be reached from here."""

    def loss(self, value: object, variables: Sequence[object], beside: Array) -> Array:
        """The loss that was heard; NaN where ``beside``, a tensor of the step, is elsewhere."""

    def head(self, batch: Sequence[Array], calls: Sequence[Array]) -> Array:
        """The first numbers of a row: those of `track.BATCH`, then each call's `track.CALL`."""

    def body(
        self, step: Sequence[Array], leaves: Sequence[Array], places: Sequence[int], tensors: int
    ) -> Array:
        """The rest of a row, each leaf figure at its tensor's place and NaN elsewhere."""

    def when(self, kind: Array, body: Callable[[], Array], width: int) -> Array:
        """``body()`` where a step is taken; what it computes is spared elsewhere."""

    def joined(self, head: Array, body: Array) -> Array:
        """A whole row."""

    def ring(self, width: int) -> DeviceRows | None:
        """Where rows of this width wait; None where they are handed over at once."""

    def emit(self, track: Track, row: Array) -> object:
        """Hand a row over; becomes part of the code that is being traced."""

    def settle(self) -> None:
        """Wait for rows that are under way."""
