"""Cards: escaped, complete, and drawn from any figures."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from steadygrad.calibration import calibrate
from steadygrad.compare import TrainingResult, judge
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


def test_a_calibration_shows_how_often_norms_of_each_size_came() -> None:
    """90 norms of 1, and 10 of 4 in between: two bars, the threshold between them or over both."""
    norms = np.where(np.arange(100) % 10 == 9, 4.0, 1.0) * (1 + 1e-3 * np.sin(np.arange(100)))
    calibration = calibrate(Run.from_arrays(steps={"norm": norms}))
    shown = calibration.histogram
    assert sum(shown.shares) == pytest.approx(1.0)
    edges = np.geomspace(shown.low, shown.high, len(shown.shares) + 1)
    for size, share in ((1.0, 0.9), (4.0, 0.1)):
        near = (edges[1:] > 0.85 * size) & (edges[:-1] < 1.15 * size)
        assert sum(np.array(shown.shares)[near]) == pytest.approx(share, abs=0.01)  # less a warm-up
    page = calibration._repr_html_()
    assert "the line is the threshold" in page
    assert page.count("<rect") >= 2
    ElementTree.fromstring(page)


def test_a_comparison_is_a_card_of_its_policies() -> None:
    outcomes = [
        TrainingResult(spec, seed, steps=9, final_loss=loss + seed / 10, trouble=trouble)
        for spec, loss, trouble in (("<auto>", 1.0, ""), ("none", math.nan, "NaN at step 3"))
        for seed in range(3)
    ]
    page = judge(outcomes, ["train.py"])._repr_html_()
    assert "&lt;auto&gt;: final loss 1.1, seeds&#x27; spread 0.2, best" in page
    assert "none: diverged, 3 of 3 diverged" in page
    ElementTree.fromstring(page)


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
