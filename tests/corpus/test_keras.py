"""Keras' part of the tenth, in a process of its own.

TensorFlow takes seconds to load, and brings an LLVM that does not bear Triton's beside it.
"""

from __future__ import annotations

import multiprocessing

import faults
import keras_training
import pytest
from cases import tenth
from judge import Verdict, judge
from tables import wrong

pytestmark = pytest.mark.timeout(900)  # the first test runs all cases


@pytest.fixture(scope="module")
def verdicts() -> list[Verdict]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.map(judge, [case for case in tenth() if case.in_keras])


def test_faults_are_told_and_healthy_runs_are_not_accused(verdicts: list[Verdict]) -> None:
    assert len({v.case.architecture for v in verdicts}) >= 3
    assert len([v for v in verdicts if v.case.accepted]) >= 3
    assert [v for v in verdicts if not v.case.accepted]
    assert wrong(verdicts) == []


def test_the_names_are_those_of_the_other_half() -> None:
    assert set(keras_training.FAULTS) <= set(faults.FAULTS)
    assert set(keras_training.HEALTHY) <= set(faults.HEALTHY)
