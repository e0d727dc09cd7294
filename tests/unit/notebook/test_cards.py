"""Cards: escaped, complete, and drawn from any figures."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from steadygrad.notebook.cards import MOST_POINTS, Card, curve
from steadygrad.rules import Finding, Findings
from steadygrad.runlog import Run

HOSTILE = "<img src=x onerror=alert(1)>\x1b[31m\u202e\"'&"


def test_nothing_from_a_card_is_markup_or_steers_the_page() -> None:
    card = Card(HOSTILE, HOSTILE, ((HOSTILE, HOSTILE),), sentences=(HOSTILE,), code=HOSTILE)
    page = card.as_html()
    assert "<img" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    ElementTree.fromstring(page)  # one well-formed element, closed where it should be


@pytest.mark.parametrize(
    "values",
    [
        [1.0],
        [math.nan, 1.0, math.inf, 2.0],
        [0.0, 0.0],
        [math.nan] * 3,
        list(np.geomspace(1e-300, 1e300, 1000)),
        [],
    ],
    ids=["one", "broken", "zeros", "nan", "wide", "none"],
)
def test_a_curve_of_any_values(values: list[float]) -> None:
    drawn = curve(values, 1.0, "red")
    if drawn:
        ElementTree.fromstring(drawn)
    assert "nan" not in drawn
    assert bool(drawn) == any(0 < v < math.inf for v in values)


def test_no_spike_and_no_nan_is_lost_where_a_curve_is_thinned() -> None:
    values = [1.0] * 100 * MOST_POINTS
    values[777], values[9000] = 1e6, math.nan
    drawn = curve(values, None, "red")
    assert drawn.count("&#215;") == 1
    heights = [float(p.split()[1]) for p in drawn.split('d="')[1].split('"')[0][1:].split("L")[:60]]
    assert min(heights) == 4.0  # the spike reaches the top


def test_findings_are_a_list_that_shows_itself() -> None:
    findings = Findings([Finding("SG101", "NaN <b>", "error", 0.9, evidence=("one",))])
    assert repr(findings) == "SG101 error: NaN <b>"
    assert "NaN &lt;b&gt;" in findings._repr_html_()
    assert "Nothing found." in Findings()._repr_html_()


def test_a_run_shows_its_norms() -> None:
    steps = {"norm": [1.0, 2.0, math.nan], "coef": [1.0, 0.5, 1.0]}
    page = Run.from_arrays(steps=steps)._repr_html_()
    assert "clipped <b>33.3%</b>" in page
    assert "&#215;" in page
    ElementTree.fromstring(page)
