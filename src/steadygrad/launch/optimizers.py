"""The optimizers of a run, numbered as they come, whatever framework they are of."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steadygrad.runlog import RunWriter
    from steadygrad.runlog.clip_calls import Count

ALL_BEFORE = 64
"""So many optimizers are put on record one by one, more of them so many at a time."""

_NONE: Mapping[str, object] = {}


class OptimizerList:
    """What the frameworks of a script share in the run file: one list, and counts of clip calls.

    Args:
        writer: gives the run file's; None where there can be none.

    Example:
        >>> optimizers = OptimizerList(lambda: None)
        >>> optimizers.enter("Adam"), optimizers.enter("SGD"), optimizers.next_index
        (0, 1, 2)
    """

    def __init__(self, writer: Callable[[], RunWriter | None]) -> None:
        self._writer = writer
        self._all: list[dict[str, object]] = []
        self._clip_calls: list[Count] = []
        self._lock = threading.Lock()

    @property
    def next_index(self) -> int:
        """The number of the next one."""
        return len(self._all)

    def enter(
        self, kind: str, settings: Mapping[str, object] = _NONE, facts: Mapping[str, object] = _NONE
    ) -> int:
        """List a new one.

        Args:
            kind: name of its class.
            settings: numbers of it that explain a step.
            facts: what the run file says of its framework.

        Returns:
            Its number within the run.
        """
        with self._lock:
            number = self.next_index
            entry = {"class": kind, "index": number, **settings}
            if "framework" in facts:
                entry["framework"] = facts["framework"]
            self._all.append(entry)
        if number < ALL_BEFORE or number % ALL_BEFORE == 0:
            self._tell(facts)
        return number

    def finish(self) -> None:
        """Put on record what was not yet."""
        if self.next_index > ALL_BEFORE:
            self._tell(_NONE)

    def count_clips(self, counts: Sequence[Count]) -> None:
        """Put counts of the script's clip calls on record, beside those of other frameworks."""
        self._clip_calls += counts
        writer = self._writer()
        if writer is not None:
            writer.update_info(clip_calls=self._clip_calls)

    def _tell(self, facts: Mapping[str, object]) -> None:
        writer = self._writer()
        if writer is not None:
            writer.update_info(optimizers=self._all, **facts)
