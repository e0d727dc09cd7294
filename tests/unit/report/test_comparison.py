"""Side by side: no claim beyond what the runs show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from steadygrad.report import build
from steadygrad.runlog import Run, TensorInfo


def with_loss(end: float, noise: float = 0.01, **more: Any) -> Run:
    r = np.random.default_rng(int(100 * end))
    loss = np.linspace(2.0, end, 400) + r.normal(0, noise, 400)
    return Run.from_arrays(steps={"norm": np.exp(r.normal(0, 0.1, 400)), "loss": loss}, **more)


def test_the_lowest_final_loss_is_named_first() -> None:
    told = build([with_loss(0.9), with_loss(0.3)])["comparison"]
    assert told["sentence"].startswith("Lowest final loss: run 2 0.3")
    assert "difference" not in told["sentence"]


def test_runs_within_their_noise_have_no_clear_difference() -> None:
    told = build([with_loss(0.50, 0.1), with_loss(0.52, 0.1)])["comparison"]
    assert "(no clear difference)" in told["sentence"]


def test_a_run_that_goes_on_is_not_called_broken() -> None:
    """Its first layers learn nothing."""
    layers = [TensorInfo(f"{i}.weight", (64, 64), "float32", "Linear", i) for i in range(12)]
    norms = np.tile(np.geomspace(1e-10, 1.0, 12), (400, 1))
    steps = {"norm": np.linalg.norm(norms, axis=1), "loss": np.linspace(2.0, 1.9, 400)}
    zeros = np.zeros((400, 12))
    run = Run.from_arrays(steps=steps, tensors=layers, tensor_norms=norms, tensor_nonfinite=zeros)
    told = build([with_loss(0.9), run])
    assert told["comparison"]["sentence"].endswith("Faults found in run 2.")
    assert told["runs"][1]["verdict"]["word"] == "Fault found"


def test_a_broken_run_has_no_final_loss_and_is_said_to_be_broken(a_run: Callable[..., Run]) -> None:
    told = build([a_run(nan_from=200), a_run(clip=1.0)])["comparison"]
    assert told["sentence"].endswith("Broken: run 1.")
    final = told["columns"].index("Final loss")
    assert told["rows"][0]["cells"][final] == "–"
    assert told["rows"][0]["level"] == "error"


def test_the_table_holds_what_the_runs_reported_themselves() -> None:
    told = build([with_loss(0.5, info={"results": {"Accuracy": "91 %"}}), with_loss(0.6)])[
        "comparison"
    ]
    place = told["columns"].index("Accuracy")
    assert [row["cells"][place] for row in told["rows"]] == ["91 %", "–"]
    assert all(len(row["cells"]) == len(told["columns"]) for row in told["rows"])


def test_the_direction_kept_is_the_mean_cosine_of_clipped_steps() -> None:
    cosine = np.tile([1.0, 0.6], 50)
    run = Run.from_arrays(
        steps={"norm": np.ones(100), "cosine": cosine, "action": np.tile(["none", "clip"], 50)}
    )
    told = build([run, with_loss(0.5)])["comparison"]
    place = told["columns"].index("Direction kept")
    assert [row["cells"][place] for row in told["rows"]] == ["0.60", "1"]


def test_one_run_is_not_compared(a_run: Callable[..., Run]) -> None:
    assert build([a_run()])["comparison"] is None


def test_columns_of_zeros_are_left_out(a_run: Callable[..., Run]) -> None:
    quiet = build([with_loss(0.5), with_loss(0.6)])["comparison"]["columns"]
    broken = build([with_loss(0.5), a_run(nan_from=200)])["comparison"]
    assert not {"Skipped", "NaN or inf"} & set(quiet)
    place = broken["columns"].index("NaN or inf")
    assert [row["cells"][place] for row in broken["rows"]] == ["0", "200"]


def test_each_runs_recommended_threshold_stands_in_the_table() -> None:
    told = build([with_loss(0.5), with_loss(0.6)])
    place = told["comparison"]["columns"].index("Recommended")
    shown = [row["cells"][place] for row in told["comparison"]["rows"]]
    assert shown == [f"{r['recommendation']['threshold']:g}" for r in told["runs"]]


def test_the_optimizers_of_a_gan_are_compared_each_by_itself() -> None:
    def gan(critic: float, generator: float) -> Run:
        r = np.random.default_rng(int(100 * critic))
        levels = np.tile([critic, generator], 200)
        return Run.from_arrays(
            steps={
                "norm": np.tile([1.0, 50.0], 200) * np.exp(r.normal(0, 0.1, 400)),
                "loss": levels + r.normal(0, 0.01, 400),
                "optimizer": np.tile([0, 1], 200),
            }
        )

    told = build([gan(0.5, 3.0), gan(0.9, 2.0)])["comparison"]
    critic, generator = told["sentence"].split(". ")
    assert critic.startswith("optimizer 0: Lowest final loss: run 1 0.")
    assert ", then run 2 0." in critic
    assert generator.startswith("optimizer 1: Lowest final loss: run 2 2")
    assert [row["name"] for row in told["rows"]] == [
        f"run {n}, optimizer {k}" for n in (1, 2) for k in (0, 1)
    ]
    columns = {c: [row["cells"][i] for row in told["rows"]] for i, c in enumerate(told["columns"])}
    medians = np.array(columns["Median norm"], dtype=float)
    np.testing.assert_allclose(medians, [1, 50, 1, 50], rtol=0.05)
    assert np.all(np.array(columns["Recommended"], dtype=float) < [10, 500, 10, 500])
