"""The origin of a NaN at the head of its finding's card."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from steadygrad.report import build
from steadygrad.report.page import render
from steadygrad.runlog import Run
from steadygrad.runlog.origin import Origin, Range
from steadygrad.runlog.run import Event
from steadygrad.vocabulary import NAN_ORIGIN

ORIGIN = Origin(
    300,
    "forward",
    "torch.log",
    "blocks.1",
    "Block",
    "train.py",
    12,
    "x = x.log()  # <img src=x>",
    inputs=(Range("input 0", (8, 6), "float32", 0.0, 1.25),),
    first_kind="inf",
    then="inf came first, NaN followed in Tensor.sub at line 14",
    rows=(2, 5),
    rows_total=2,
    batch=8,
    replayed=True,
)


@pytest.fixture
def told(a_run: Callable[..., Run]) -> dict[str, Any]:
    run = a_run(nan_from=300)
    run.events.append(Event(300, 0.0, NAN_ORIGIN, {**ORIGIN.as_json(), "optimizer": 0}))
    return build([run])


def test_the_finding_holds_the_line_and_what_is_known_of_it(told: dict[str, Any]) -> None:
    first, *others = told["runs"][0]["findings"]
    assert first["id"] == "SG101"
    assert (first["origin"]["place"], first["origin"]["source"]) == ("train.py:12", ORIGIN.source)
    assert [tuple(fact) for fact in first["origin"]["facts"]] == [
        ("made by", "torch.log, in the forward pass"),
        ("module", "blocks.1 (Block)"),
        ("first", "inf at step 300; inf came first, NaN followed in Tensor.sub at line 14"),
        ("given", "input 0 (float32, 8x6) from 0 to 1.25"),
        ("rows", "2, 5 of the batch's 8"),
    ]
    assert all(other["origin"] is None for other in others)


def test_the_page_says_it_once_and_as_text(told: dict[str, Any]) -> None:
    page = render(told).partition('type="application/json"')[0]
    assert page.count("torch.log, in the forward pass") == 1
    assert "x = x.log()  # &lt;img src=x&gt;" in page
    assert "<img" not in page
    assert ORIGIN.sentences()[2] not in page  # told by the block
    assert "Step 300 is the first with NaN" in page  # the other evidence stays


def test_what_was_not_found_stays_a_sentence(a_run: Callable[..., Run]) -> None:
    lost = Origin(300, "unknown", tensors=("layer0.weight",), why_not="it ran compiled")
    run = a_run(nan_from=300)
    run.events.append(Event(300, 0.0, NAN_ORIGIN, {**lost.as_json(), "optimizer": 0}))
    finding = build([run])["runs"][0]["findings"][0]
    assert finding["origin"] is None
    assert "it ran compiled" in " ".join(finding["evidence"])


@pytest.mark.parametrize(
    ("origin", "made"),
    [
        (Origin(3, "input", "data", replayed=True), "data: no operation, it came with the data"),
        (
            Origin(3, "weights", "head.bias", replayed=True),
            "head.bias: no operation, it stood there before the step",
        ),
        (
            Origin(3, "backward", "SqrtBackward0", replayed=True),
            "SqrtBackward0, in the backward pass",
        ),
    ],
)
def test_every_phase_has_its_words(origin: Origin, made: str, a_run: Callable[..., Run]) -> None:
    run = a_run(nan_from=300)
    run.events.append(Event(3, 0.0, NAN_ORIGIN, {**origin.as_json(), "optimizer": 0}))
    finding = build([run])["runs"][0]["findings"][0]
    assert list(finding["origin"]["facts"][0]) == ["made by", made]
