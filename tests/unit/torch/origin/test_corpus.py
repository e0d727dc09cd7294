"""A fixed part of the corpus of NaN makers: the line that is named is the right one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "corpus"))

from origin_cases import Case, all_cases, expected_lines, is_right, run

CASES = all_cases()
MAKERS = sorted({case.maker for case in CASES})
PART = [
    [case for case in CASES if case.maker == maker][number % 3]
    for number, maker in enumerate(MAKERS)
]


@pytest.mark.parametrize("case", PART, ids=str)
def test_the_right_line_is_named(case: Case) -> None:
    origin = run(case)
    assert is_right(case, origin), f"{origin}\nexpected {expected_lines(case)}"


def test_another_line_is_wrong() -> None:
    origin = run(Case("log_of_zero", "mlp"))
    assert is_right(Case("log_of_zero", "mlp"), origin)
    assert not is_right(Case("log_of_softmax", "mlp"), origin)
