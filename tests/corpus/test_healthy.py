"""The healthy half of the same tenth: a file of its own, so that two workers share the tenth."""

from __future__ import annotations

import pytest
from cases import tenth
from judge import Verdict, judge, table, wrong


@pytest.fixture(scope="module")
def verdicts() -> list[Verdict]:
    return [judge(case) for case in tenth() if not case.accepted]


ACCUSED = {"slow-autoencoder-2"}
"""Healthy runs of the tenth that are accused wrongly: docs/diagnosis.md says of what. A new one
fails, and so does one that is silent again."""


def test_no_other_healthy_run_is_accused(verdicts: list[Verdict]) -> None:
    assert len(verdicts) > 30
    assert {str(v.case) for v in verdicts if v.alarmed} == ACCUSED, wrong(verdicts)


def test_the_table_shows_every_detector(verdicts: list[Verdict]) -> None:
    text = table(verdicts)
    assert text.count("**steadygrad**") == 2
    for name in ("AutoTrainer", "SageMaker", "TheDeepChecker"):
        assert name in text
