"""What a report says, before any reporter lays it out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import numpy as np
import pytest

from steadygrad import calibrate, diagnose
from steadygrad.errors import UsageError
from steadygrad.report import build, verdict
from steadygrad.runlog import Run


def test_it_is_strict_json_even_for_a_run_that_ended_in_nan(a_run: Callable[..., Run]) -> None:
    told = build([a_run(nan_from=300, info={"seed": float("nan"), "x": (1, np.float32(2))})])
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_findings_and_threshold_are_those_of_diagnose_and_calibrate(
    a_run: Callable[..., Run],
) -> None:
    run = a_run(nan_from=300)
    told = build([run])["runs"][0]
    assert [f["id"] for f in told["findings"]] == [f.id for f in diagnose(run)]
    assert told["recommendation"]["threshold"] == calibrate(run).threshold
    assert told["recommendation"]["spec"] == calibrate(run).spec
    assert told["recommendation"]["reason"] == calibrate(run).advice[0]
    assert told["verdict"]["level"] == "error"
    assert told["verdict"]["sentence"].rstrip(".") == diagnose(run)[0].title.rstrip(".")


def test_a_run_too_short_for_a_threshold_says_why(a_run: Callable[..., Run]) -> None:
    told = build([a_run(12, spikes=())])["runs"][0]
    assert told["recommendation"]["threshold"] is None
    assert "12" in told["recommendation"]["reason"]


def test_an_empty_run_is_never_called_healthy() -> None:
    told = build([Run.from_arrays(steps={"norm": []})])["runs"][0]
    assert told["verdict"]["level"] == "empty"
    assert told["verdict"]["word"] != "Steady"


def test_a_clipped_peak_is_not_said_to_have_stayed_low(a_run: Callable[..., Run]) -> None:
    sentence = verdict(a_run(clip=1.0), []).sentence
    assert "were clipped" in sentence
    assert re.search(r"(39|40)[.0-9]* times", sentence), sentence


def test_the_histogram_holds_every_usable_step(a_run: Callable[..., Run]) -> None:
    run = a_run(nan_from=300)
    picture = build([run])["runs"][0]["thresholds"][0]
    assert sum(picture["histogram"]["counts"]) == 300
    assert picture["histogram"]["edges"][0] < np.log10(picture["threshold"])
    assert picture["histogram"]["edges"][-1] > np.log10(picture["threshold"])


def test_an_explosion_does_not_squeeze_the_ordinary_norms_into_one_bar() -> None:
    norm = np.exp(np.random.default_rng(0).normal(0, 0.2, 400))
    norm[395:] = np.geomspace(1e3, 1e30, 5)
    picture = build([Run.from_arrays(steps={"norm": norm})])["runs"][0]["thresholds"][0]
    drawn = picture["histogram"]
    assert sum(drawn["counts"]) == 400
    assert drawn["counts"][-1] >= drawn["beyond"] == 5
    assert sum(c > 0 for c in drawn["counts"]) > 10
    at = int(np.searchsorted(drawn["edges"], np.log10(picture["threshold"])))
    rounding = 1e-4
    assert drawn["rates"][at] - rounding <= picture["clip_rate"]
    assert picture["clip_rate"] <= drawn["rates"][at - 1] + rounding
    assert drawn["rates"][0] == 1.0


def test_optimizers_are_kept_apart() -> None:
    r = np.random.default_rng(0)
    norm = np.exp(r.normal(0, 0.1, 200)) * np.tile([1.0, 100.0], 100)
    run = Run.from_arrays(
        steps={
            "norm": norm,
            "optimizer": np.tile([0, 1], 100),
            "step": np.repeat(np.arange(100), 2),
        },
        info={"optimizers": [{"class": "Adam", "index": 0}, {"class": "SGD", "index": 1}]},
    )
    told = build([run])["runs"][0]
    assert [o["name"] for o in told["optimizers"]] == ["Adam 0", "SGD 1"]
    assert [len(s["norm"]["step"]) for s in told["series"]] == [100, 100]
    assert told["thresholds"][1]["median"] > 50 * told["thresholds"][0]["median"]


def test_runs_of_one_name_are_told_apart(a_run: Callable[..., Run]) -> None:
    runs = [a_run(), a_run(seed=1)]
    assert [r["name"] for r in build(runs)["runs"]] == ["run 1", "run 2"]


def test_no_run_is_an_error_that_says_what_to_type() -> None:
    with pytest.raises(UsageError, match=r"steadygrad report RUN\.db"):
        build([])


def test_trainings_of_one_script_are_not_added_up() -> None:
    own = np.exp(np.random.default_rng(0).normal(0.0, 0.2, 100))
    fall = np.linspace(2.0, 1.0, 100)
    info = {"optimizers": [{"class": "SGD", "index": i} for i in range(3)]}
    run = Run.from_arrays(
        steps={
            "step": np.tile(np.arange(100), 3),
            "optimizer": np.repeat(np.arange(3), 100),
            "norm": np.concatenate([own, 100 * own, 1e4 * own]),
            "loss": np.concatenate([fall, 100 * fall, 1e4 * fall]),
        },
        info=info,
    )
    told = build([run])["runs"][0]
    factor = own.max() / np.median(own)
    sentence = told["verdict"]["sentence"]
    assert (
        f"300 steps of 3 optimizers: each one's gradient norm stayed within {factor:.3g} times"
        in (sentence)
    )
    of_each = [verdict(_only(run, number), []).sentence for number in range(2)]
    fell = [sentence.rpartition("the loss ")[2].rstrip(".") for sentence in of_each]
    assert f"{fell[0]} (optimizer 0), {fell[1]} (optimizer 1)" in sentence
    figures = {f["label"]: f["value"] for f in told["figures"]}
    median = np.median(own)
    assert figures["Steps of optimizers 0 | 1 | 2"] == "100 | 100 | 100"
    assert figures["Median norm of optimizers 0 | 1 | 2"] == (
        f"{median:.3g} | {100 * median:.3g} | {1e4 * median:,.0f}"
    )
    assert told["recommendation"]["label"].startswith("SGD 0: ")
    assert [p["threshold"] for p in told["thresholds"]] == [
        calibrate(run, optimizer=i).threshold for i in range(3)
    ]


def _only(run: Run, number: int) -> Run:
    rows = run.steps[run.steps["optimizer"] == number]
    return Run.from_arrays(steps={name: rows[name] for name in ("step", "norm", "loss")})
