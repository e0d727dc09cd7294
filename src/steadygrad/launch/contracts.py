"""What the parts of an observed run know of each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from steadygrad.launch.plan import Plan

if TYPE_CHECKING:
    from steadygrad.runlog import RunWriter


class RunContext(Protocol):
    """What an observer of a framework needs of the run.

    Attributes:
        overhead: seconds that observing has cost the script.
    """

    overhead: float

    @property
    def plan(self) -> Plan:
        """What was asked for."""

    def writer(self) -> RunWriter | None:
        """The run file's writer, made at the first call; None where there can be none."""

    def trouble(self, what: str, error: BaseException) -> None:
        """Keep a failure of ours for the last words."""

    def mention(self, sentence: str) -> None:
        """Keep a sentence for the last words, once."""


class Observer(Protocol):
    """What observes one framework in one process."""

    @property
    def steps(self) -> int:
        """Optimizer steps seen so far."""

    @property
    def backwards(self) -> int:
        """Backward passes seen so far; 0 where the framework shows none."""

    def finish(self) -> None:
        """The script is over: write what is left, before the run file is closed."""
