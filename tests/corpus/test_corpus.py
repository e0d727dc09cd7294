"""Every second broken case of a fixed tenth of the corpus, held to what the whole is held to.

Thirty-eight more, of a rule each, are in `test_fixes.py`, and kinds from public reports in
`test_field.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cases import HELD_ARCHITECTURES, HELD_SEEDS, Case, all_cases, tenth
from faults import EVERY, FAULTS, HEALTHY, PARTLY, at
from judge import Verdict, judge
from keras_training import BODIES
from others import OTHERS
from tables import sections, written, wrong
from training import Setup

from steadygrad.rules import REGISTRY

pytestmark = pytest.mark.timeout(900)  # the first test runs all cases


@pytest.fixture(scope="module")
def verdicts(once: Callable[..., list[Verdict]]) -> list[Verdict]:
    broken = [case for case in tenth() if case.accepted and not case.in_keras]
    half = broken[::2]  # the others: python -m corpus --tenth
    return once("corpus", lambda folder: [judge(case) for case in half])


def test_faults_are_detected(verdicts: list[Verdict]) -> None:
    assert len(verdicts) > 20
    assert [str(v.case) for v in verdicts if not v.detected] == []


def test_the_first_answer_is_an_accepted_one(verdicts: list[Verdict]) -> None:
    assert sum(v.first for v in verdicts) >= 0.9 * len(verdicts), wrong(verdicts)


def test_the_corpus_is_as_large_as_it_says() -> None:
    cases = all_cases()
    assert len(FAULTS) >= 25
    assert {case.architecture for case in cases} == {*EVERY, *PARTLY, *BODIES}
    assert all(fault.twin in HEALTHY for fault in FAULTS.values())
    assert {i for fault in FAULTS.values() for i in fault.accepted} <= set(REGISTRY)
    families = {i[:3] for fault in FAULTS.values() for i in fault.accepted}
    assert families == {"SG1", "SG2", "SG3", "SG4", "SG5", "SG6"}


def test_what_strikes_once_does_so_with_time_to_be_seen() -> None:
    assert all(10 <= at(seed) <= Setup().steps - 10 for seed in range(100))


def test_a_third_is_held_out() -> None:
    architectures = {*EVERY, *PARTLY, *BODIES}
    assert 3 * len(HELD_ARCHITECTURES) >= len(architectures)
    assert set(HELD_ARCHITECTURES) < architectures
    cases = all_cases()
    assert 3 * sum(case.held_out for case in cases) >= len(cases)
    assert Case("plain", "unet", 7).held_out
    assert Case("plain", "mlp", HELD_SEEDS[0]).held_out
    assert not Case("plain", "mlp", 7).held_out


def test_the_page_has_a_place_for_what_is_printed() -> None:
    page = (Path(__file__).parents[2] / "docs" / "diagnosis.md").read_text()
    case = Case("plain", "mlp", HELD_SEEDS[0])
    verdicts = [
        Verdict(case, ("SG202",), {}),
        Verdict(Case("masked", "mlp", HELD_SEEDS[0], ("SG302",)), ("SG302", "SG301?"), {}),
    ]
    for verdict in verdicts:
        verdict.others.update(dict.fromkeys(OTHERS, (False, False)))
    new = written(page, sections(verdicts, 12.0, 2))
    assert "2 runs: 1 broken, 1 healthy, 2 of them held out; 12 s in 2 processes." in new
    assert "| **steadygrad** | held out | 1/1 (100.0 %) | 1/1 (100.0 %) | 1/1 (100.0 %) |" in new
    assert f"- `{case}`: accepted nothing, said SG202" in new
    assert written(new, sections(verdicts, 12.0, 2)) == new
    with pytest.raises(SystemExit, match="summary"):
        written("a page without marks", {"summary": "text"})
