"""What recovery did, wherever a run is shown: rules read through it, and it is drawn and told."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

import steadygrad
from steadygrad.recovery import RecoveryEvent
from steadygrad.report import build
from steadygrad.report.page import render
from steadygrad.report.terminal import view
from steadygrad.runlog import Event, Run, RunWriter, StepRecord
from steadygrad.vocabulary import RECOVERY
from steadygrad.watch.frame import Frame
from steadygrad.watch.snapshot import take

STEPS, TO, STRUCK = 300, 180, 205


def act(step: int, name: str, **rest: object) -> Event:
    return Event(step, 0.0, RECOVERY, dict(RecoveryEvent(step, name, **rest).as_json()))


def columns() -> dict[str, np.ndarray]:
    """Steady, save for an explosion into NaN that is taken back, and steps left out after it."""
    rng = np.random.default_rng(0)
    norm = np.exp(rng.normal(0, 0.1, STEPS))
    loss = np.linspace(2.0, 1.0, STEPS) + rng.normal(0, 0.01, STEPS)
    norm[TO : STRUCK - 3] *= 10.0 ** np.linspace(0, 6, STRUCK - 3 - TO)
    norm[STRUCK - 3 : STRUCK + 1] = loss[STRUCK - 3 : STRUCK + 1] = np.nan
    action = np.full(STEPS, "none")
    action[STRUCK : STRUCK + 21] = "skip"
    nonfinite = np.where(np.isnan(norm), 4, 0)
    return {"norm": norm, "loss": loss, "action": action, "nonfinite": nonfinite}


HEALED = [
    act(STRUCK, "rollback", trigger="weights not finite", to_step=TO, nature="persistent"),
    *(act(step, "leave out") for step in range(STRUCK + 1, STRUCK + 21)),
]


def healed(*more: Event) -> Run:
    return Run.from_arrays(steps=columns(), events=[*HEALED, *more])


def test_a_stretch_that_was_taken_back_is_not_judged_as_the_runs_own() -> None:
    struck = Run.from_arrays(steps=columns())
    assert {"SG102", "SG201", "SG202"} & {f.id for f in steadygrad.diagnose(struck)}
    (told,) = steadygrad.diagnose(healed())
    assert (told.id, told.severity) == ("SG206", "warning")
    assert "1 rollback (26 steps taken back), 20 steps left out" in told.title
    assert any(
        "weights not finite, persistent; rolled back to step 180" in e for e in told.evidence
    )


@pytest.mark.parametrize(
    ("name", "severity"), [("stop", "error"), ("accept", "info"), ("skip", "warning")]
)
def test_how_grave_it_is(name: str, severity: str) -> None:
    run = Run.from_arrays(
        steps={"norm": np.ones(50)}, events=[act(49, name, trigger="loss spike", to_step=49)]
    )
    assert [(f.id, f.severity) for f in steadygrad.diagnose(run)] == [("SG206", severity)]


def test_a_run_of_which_nothing_remains_is_told_too() -> None:
    run = Run.from_arrays(
        steps={"norm": np.ones(50)}, events=[act(49, "stop", trigger="loss spike", to_step=0)]
    )
    assert [f.id for f in steadygrad.diagnose(run)] == ["SG206"]
    build([run, run])


def test_thresholds_and_levels_are_of_the_steps_that_remain() -> None:
    kept = {name: np.delete(each, np.r_[TO : STRUCK + 1]) for name, each in columns().items()}
    left = steadygrad.calibrate(Run.from_arrays(steps=kept))
    assert steadygrad.calibrate(healed()).threshold == left.threshold
    figures = {f["label"]: f for f in build([healed()])["runs"][0]["figures"]}
    assert figures["Median norm"]["note"] == f"peak {kept['norm'].max():.3g}"
    assert figures["Unstable steps"]["note"] == "0 spikes, 46 undone"


def test_it_is_drawn_and_told() -> None:
    report = build([healed()])
    told = report["runs"][0]["series"][0]["recovery"]
    assert told["undone"] == [{"first": TO, "last": STRUCK}]
    assert [(a["first"], a["last"], a["act"]) for a in told["acts"]] == [
        (STRUCK, STRUCK, "rollback"),
        (STRUCK + 1, STRUCK + 20, "leave out"),
    ]
    assert report["runs"][0]["stability"]["recoveries"] == 46
    assert "Grey stretches were taken back" in render(report)
    assert "Grey stretches" not in render(build([Run.from_arrays(steps=columns())]))
    console = Console(width=100, file=io.StringIO())
    console.print(view(report))
    (line, _) = [x for x in console.file.getvalue().splitlines() if "taken back " in x and "░" in x]
    assert 5 <= line.count("░") <= 10  # 26 of 300 steps in 84 columns


def test_watch_says_it(tmp_path: object) -> None:
    path = f"{tmp_path}/run.db"
    with RunWriter(path) as out:
        for step in range(40):
            out.write_step(StepRecord(step, loss=1.0, norm=1.0), [], *np.zeros((4, 0)))
        out.write_event(
            RECOVERY, dict(RecoveryEvent(30, "rollback", "loss spike", 20).as_json()), 30
        )
    console = Console(width=110, height=24, file=io.StringIO(), force_terminal=True)
    console.print(Frame(take(path)))
    lines = console.file.getvalue().splitlines()
    (told,) = [line for line in lines if "recovery" in line and "last:" in line]
    assert "1 rollback (11 steps taken back)" in told
    assert "step 30: loss spike; rolled back to step 20" in told
    (norms,) = [line for line in lines if "grad norm" in line]
    assert norms.count("90m") == 11
