"""What a run file holds of earlier starts of its job, and how the next start goes on from there."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from steadygrad.elastic import restarts
from steadygrad.recovery.events import RESTART, RecoveryEvent
from steadygrad.runlog.items import EventItem, InfoItem
from steadygrad.runlog.records import TensorInfo
from steadygrad.runlog.store import Store
from steadygrad.vocabulary import RECOVERY

OFFSET = "step_offset"
"""Fact of a run file: what was added to the numbers that the last start gave its steps."""
STEPS = ("step", "to_step", "until", "first_step", "last_step")
"""Details of events that are numbers of steps, or lists of them."""


class Earlier:
    """Numbers steps on where an earlier start stopped.

    Args:
        store: of the file, just opened.

    Attributes:
        offset: added to the numbers of steps; known from the first on.
        facts: what the file says of this start beyond what any run says.
    """

    def __init__(self, store: Store) -> None:
        self.offset = 0
        self._next = store.next_step
        self._before = int(store.facts.get(OFFSET) or 0)
        ended = store.facts.get("exit")
        self._ending = "ended" if "ended" in store.facts else "killed"
        if ended is not None:
            self._ending = f"ended by {ended}"
        self._ids: dict[TensorInfo, int] = {}
        for number, tensor in enumerate(store.tensors):
            self._ids.setdefault(tensor, number)
        self._earlier_optimizers = store.optimizers
        self._optimizers: set[int] = set()
        count = max(restarts(), int(store.facts.get("restart") or 0) + 1)
        self.facts: dict[str, object] = {"restart": count}

    def ids(self, tensors: Sequence[TensorInfo]) -> list[int]:
        """Numbers of tensors that the file knows; empty where it does not know all of them."""
        ids = [self._ids.get(tensor, -1) for tensor in tensors]
        return [] if -1 in ids else ids

    def items_of_start(self, step: int, optimizer: int) -> list[EventItem | InfoItem]:
        """What the file is to say at the first step of an optimizer in this start.

        An own number above 0 says from where the script goes on; below it nothing is undone.

        Args:
            step: as this start numbers it.
            optimizer: its number.
        """
        if optimizer in self._optimizers:
            return []
        if not self._optimizers:
            self.offset = self._next - step
        self._optimizers.add(optimizer)
        if optimizer not in self._earlier_optimizers:
            return []
        back_to = min(step + self._before if step else 0, self._next - 1)
        event = RecoveryEvent(self._next - 1, RESTART, self._ending, back_to, optimizer=optimizer)
        return [
            EventItem(RECOVERY, event.as_json(), event.step, time.time()),
            InfoItem({OFFSET: self.offset}),
        ]

    def numbered(self, data: Mapping[str, object]) -> dict[str, object]:
        """Details of an event, with steps as the file numbers them."""
        return {key: self._moved(value) if key in STEPS else value for key, value in data.items()}

    def _moved(self, value: object) -> object:
        if isinstance(value, list):
            return [self._moved(each) for each in value]
        return value + self.offset if isinstance(value, int) else value
