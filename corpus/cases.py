"""The corpus: {fault x architecture x seed}, each fault beside its healthy variants.

A third of the architectures, and every second seed of the others, are held out: rules were
tuned on the rest only, and what is reported first is what they do on the held-out part.
What was held out once and has been looked at is tuned on now (seeds 2, 7, 8, 11 and 12, and all
of `ARCHITECTURES`); seeds that no rule had been run on took its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras_training
from composed import COMPOSED
from faults import FAULTS, HEALTHY
from keras_training import KerasSetup
from training import Setup

TUNED_SEED = 7
HELD_SEEDS = (13, 14)
HELD_ARCHITECTURES = (*COMPOSED, "keras_gru", "keras_residual")
TENTH, KERAS_PART = 10, 20
MANY = 12
"""Runs of one fault or variant: of more architectures it takes as many in turn, one seed each."""
EVERYWHERE = ("plain", "slow", "clipped")
"""Variants that are trained in every architecture all the same."""


@dataclass(frozen=True)
class Case:
    """One training to run.

    Attributes:
        name: of the fault, or of the healthy variant.
        architecture: a key of `ARCHITECTURES`, `COMPOSED` or `keras_training.BODIES`.
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

    @property
    def in_keras(self) -> bool:
        """Whether Keras trains it."""
        return self.architecture in keras_training.BODIES

    def setup(self) -> Setup | KerasSetup:
        """How it is trained."""
        if self.in_keras:
            table = keras_training.FAULTS if self.accepted else keras_training.HEALTHY
            return table[self.name][1](self.architecture, self.seed)
        make = FAULTS[self.name].make if self.accepted else HEALTHY[self.name][1]
        return make(self.architecture, self.seed)

    def __str__(self) -> str:
        return f"{self.name}-{self.architecture}-{self.seed}"


def seeds(architecture: str) -> tuple[int, ...]:
    """Two of each architecture; both are held out where the architecture is."""
    return HELD_SEEDS if architecture in HELD_ARCHITECTURES else (TUNED_SEED, HELD_SEEDS[0])


def _trainings(name: str, place: int, architectures: tuple[str, ...]) -> list[tuple[str, int]]:
    """Architecture and seed of each training of one fault or variant.

    Args:
        name: of the fault or variant.
        place: its place among the others: each begins with another architecture.
        architectures: where it can happen.
    """
    if 2 * len(architectures) <= MANY:
        return [(a, seed) for a in architectures for seed in seeds(a)]
    wide = len(architectures)
    runs = wide if name in EVERYWHERE else min(wide, MANY)
    chosen = sorted((place + run * wide // runs) % wide for run in range(runs))
    return [
        (architectures[index], seeds(architectures[index])[(place + turn) % 2])
        for turn, index in enumerate(chosen)
    ]


def _in_keras(table: dict[str, tuple[tuple[str, ...], Any]], name: str) -> tuple[str, ...]:
    return table[name][0] if name in table else ()


def all_cases() -> list[Case]:
    """Every broken case, then every healthy one."""
    broken = [
        Case(name, architecture, seed, fault.answers(architecture))
        for place, (name, fault) in enumerate(FAULTS.items())
        for architecture, seed in _trainings(
            name, place, (*fault.architectures, *_in_keras(keras_training.FAULTS, name))
        )
    ]
    healthy = [
        Case(name, architecture, seed)
        for place, (name, (architectures, _)) in enumerate(HEALTHY.items())
        for architecture, seed in _trainings(
            name, place, (*architectures, *_in_keras(keras_training.HEALTHY, name))
        )
    ]
    return broken + healthy


def tenth() -> list[Case]:
    """What runs with the tests: every tenth case of each half, and fewer of Keras' slow ones."""
    cases = all_cases()
    broken = [case for case in cases if case.accepted and not case.in_keras]
    healthy = [case for case in cases if not case.accepted and not case.in_keras]
    return broken[::TENTH] + healthy[::TENTH] + [c for c in cases if c.in_keras][::KERAS_PART]
