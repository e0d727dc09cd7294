"""The corpus: {fault x architecture x seed}, each fault beside its healthy variants.

A third of the architectures and a third of the seeds are held out: rules were tuned on
the others only, and what is reported first is what they do on the held-out part.
"""

from __future__ import annotations

from dataclasses import dataclass

from faults import FAULTS, HEALTHY
from training import Setup

SEEDS = (0, 1, 2)
HELD_ARCHITECTURES = ("cnn", "gru", "autoencoder")
HELD_SEEDS = (2,)
TENTH = 10


@dataclass(frozen=True)
class Case:
    """One training to run.

    Attributes:
        name: of the fault, or of the healthy variant.
        architecture: a key of `ARCHITECTURES`.
        seed: of weights and batches.
        accepted: right answers; empty for a healthy run.
    """

    name: str
    architecture: str
    seed: int
    accepted: tuple[str, ...] = ()

    @property
    def held_out(self) -> bool:
        """Whether no rule was tuned on it."""
        return self.architecture in HELD_ARCHITECTURES or self.seed in HELD_SEEDS

    def setup(self) -> Setup:
        """How it is trained."""
        make = FAULTS[self.name].make if self.accepted else HEALTHY[self.name][1]
        return make(self.architecture, self.seed)

    def __str__(self) -> str:
        return f"{self.name}-{self.architecture}-{self.seed}"


def all_cases() -> list[Case]:
    """Every broken case, then every healthy one."""
    broken = [
        Case(name, architecture, seed, fault.accepted)
        for name, fault in FAULTS.items()
        for architecture in fault.architectures
        for seed in SEEDS
    ]
    healthy = [
        Case(name, architecture, seed)
        for name, (architectures, _) in HEALTHY.items()
        for architecture in architectures
        for seed in SEEDS
    ]
    return broken + healthy


def tenth() -> list[Case]:
    """The fixed tenth that runs with the tests: every tenth case of each half."""
    cases = all_cases()
    broken = [case for case in cases if case.accepted]
    healthy = [case for case in cases if not case.accepted]
    return broken[::TENTH] + healthy[::TENTH]
