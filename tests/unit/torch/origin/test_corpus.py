"""A fixed part of the corpus of NaN makers: the line that is named is the right one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[4] / "corpus"))

import origin_heldout_cases as heldout
from origin_cases import Case, all_cases, expected_lines, is_right, run


def one_of_each(cases: list) -> list:
    """Of every maker one case, in another architecture each time."""
    by_maker: dict[str, list] = {}
    for case in cases:
        by_maker.setdefault(case.maker, []).append(case)
    return [group[number % len(group)] for number, group in enumerate(by_maker.values())]


@pytest.mark.parametrize("case", one_of_each(all_cases()), ids=str)
def test_the_right_line_is_named(case: Case) -> None:
    origin = run(case)
    assert is_right(case, origin), f"{origin}\nexpected {expected_lines(case)}"


@pytest.mark.parametrize("case", one_of_each(heldout.all_cases()), ids=str)
def test_the_right_line_is_named_in_what_was_held_out(case: heldout.Case) -> None:
    origin = heldout.run(case)
    assert heldout.is_right(case, origin), f"{origin}\nexpected {heldout.expected(case)}"


def test_another_line_is_wrong() -> None:
    origin = run(Case("log_of_zero", "mlp"))
    assert is_right(Case("log_of_zero", "mlp"), origin)
    assert not is_right(Case("log_of_softmax", "mlp"), origin)


def test_another_row_is_wrong() -> None:
    case, other = heldout.Case("loaded_row"), heldout.Case("loaded_dictionary")
    origin = heldout.run(case)
    assert heldout.is_right(case, origin)
    assert not heldout.is_right(other, origin)
