"""The healthy half of the same tenth: a file of its own, so that two workers share the tenth."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cases import tenth
from judge import Verdict, judge
from tables import table, wrong

pytestmark = pytest.mark.timeout(900)  # the first test runs all cases


@pytest.fixture(scope="module")
def verdicts(once: Callable[..., list[Verdict]]) -> list[Verdict]:
    sound = [case for case in tenth() if not case.accepted and not case.in_keras]
    half = sound[::2]  # the others: python -m corpus --tenth
    return once("healthy", lambda folder: [judge(case) for case in half])


def test_no_healthy_run_is_accused(verdicts: list[Verdict]) -> None:
    assert len(verdicts) > 15
    assert [str(v.case) for v in verdicts if v.alarmed] == [], wrong(verdicts)


def test_what_is_called_healthy_learns(verdicts: list[Verdict]) -> None:
    assert all(len(v.scores) == 2 for v in verdicts if v.case.architecture != "gan")
    assert [str(v.case) for v in verdicts if v.idle] == []


def test_the_table_shows_every_detector(verdicts: list[Verdict]) -> None:
    text = table(verdicts)
    assert text.count("**steadygrad**") == 2
    for name in ("AutoTrainer", "SageMaker", "TheDeepChecker"):
        assert name in text
