"""What the parts of an observed run know of each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from steadygrad.launch.plan import Plan

if TYPE_CHECKING:
    from steadygrad.launch.optimizers import OptimizerList
    from steadygrad.runlog import RunWriter


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


class RunContext(Protocol):
    """The part of the run that an observer of a framework uses.

    Attributes:
        overhead: seconds that observing has cost the script.
        attached: classes of the optimizers that the script attaches steadygrad to itself.
    """

    overhead: float
    attached: set[str]

    @property
    def optimizers(self) -> OptimizerList:
        """Those of all frameworks."""

    @property
    def plan(self) -> Plan:
        """What was asked for."""

    def writer(self) -> RunWriter | None:
        """The run file's writer, made at the first call; None where there can be none."""

    def trouble(self, what: str, error: BaseException) -> None:
        """Keep a failure of ours for the last words."""

    def mention(self, sentence: str) -> None:
        """Keep a sentence for the last words, once."""

    def guarded(self, what: str, act: Callable[..., object], *arguments: object) -> None:
        """Call ``act``; what it raises is a trouble of ours, not the script's."""

    @property
    def frameworks(self) -> Sequence[str]:
        """Names of the frameworks that the script imported."""

    @property
    def observers(self) -> Sequence[Observer]:
        """What observes the frameworks in use."""

    def observe(self, observer: Observer) -> None:
        """Count an observer in: its steps are the run's, and it is told when the script is over."""


class EndedRun(RunContext, Protocol):
    """What the last words say of a run that is over."""

    @property
    def path(self) -> str:
        """The run file; empty where no step was recorded."""

    @property
    def began(self) -> float:
        """When it began, in seconds since the epoch."""

    @property
    def exit(self) -> str | int:
        """``ok``, an exit status, or the name of the exception by which the script ended."""

    @property
    def troubles(self) -> Sequence[str]:
        """What went wrong on our side, as sentences."""
