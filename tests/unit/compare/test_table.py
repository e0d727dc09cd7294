"""A winner is named only where the difference exceeds the seeds' spread."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from steadygrad.compare import Cell, Grid, TrainingResult, judge, judge_each, measure
from steadygrad.compare.measuring import curve, divergence
from steadygrad.compare.show import as_plain, table
from steadygrad.errors import SpecError, UsageError
from steadygrad.runlog import RunWriter
from steadygrad.runlog.records import StepRecord, TensorInfo


def outcomes(**finals: list[float]) -> list[TrainingResult]:
    """Final losses by policy; NaN for a seed that diverged."""
    return [
        TrainingResult(
            spec, seed, trouble="" if x == x else "loss not finite", steps=9, final_loss=x
        )
        for spec, values in finals.items()
        for seed, x in enumerate(values)
    ]


def standings(**finals: list[float]) -> dict[str, str]:
    return {row.spec: row.standing for row in judge(outcomes(**finals), ["t.py"]).rows}


def test_a_difference_beyond_the_spread_wins() -> None:
    assert standings(none=[2.0, 2.2, 2.1], auto=[1.0, 1.1, 1.2]) == {
        "none": "worse",
        "auto": "best",
    }


def test_a_difference_within_the_larger_spread_does_not() -> None:
    found = judge(outcomes(none=[1.0, 2.2, 1.1], auto=[1.0, 1.1, 1.2]), ["t.py"])
    assert [row.standing for row in found.rows] == ["level with the best", "best"]
    assert found.sentence == "No winner: auto and none are level, within the spread of the seeds."


def test_fewer_diverged_seeds_come_before_a_lower_loss() -> None:
    assert standings(none=[0.1, math.nan, 0.1], auto=[1.0, 1.1, 1.2]) == {
        "none": "diverged",
        "auto": "best",
    }
    found = judge(outcomes(none=[0.1, math.nan, 0.1], auto=[1.0, 1.1, 1.2]), ["t.py"])
    assert found.sentence == (
        "auto wins, ending at 1.1: the others diverged more often. "
        "Diverged or failed: none (1 of 3)."
    )


def test_the_sentence_does_not_call_a_diverged_one_worse_in_loss() -> None:
    found = judge(outcomes(none=[0.1, math.nan], auto=[1.0, 1.1], zclip=[3.0, 3.1]), ["t.py"])
    assert "worse by more than the seeds' spread or diverged" in found.sentence


def test_the_terminal_shows_every_policy_in_full() -> None:
    specs = ["norm:1.0", "norm:50.0", "skip+norm:1.0", "value:0.01"]
    found = judge(outcomes(**{spec: [1.0, 1.1] for spec in specs}), ["t.py"])
    console = Console(width=80, file=io.StringIO())
    console.print(table(found))
    lines = console.file.getvalue().splitlines()
    assert [line.split()[0] for line in lines if "1.05" in line] == specs
    assert max(len(line.rstrip()) for line in lines) <= 80


def test_the_loss_of_a_failed_seed_does_not_count() -> None:
    crashed = TrainingResult("none", 2, trouble="failed: KeyError", steps=3, final_loss=50.0)
    (row,) = judge([*outcomes(none=[1.0, 1.2]), crashed], ["t.py"]).rows
    assert (row.final_loss, row.diverged) == (pytest.approx(1.1), 1)


def test_one_seed_names_no_winner() -> None:
    found = judge(outcomes(none=[2.0], auto=[1.0]), ["t.py"])
    assert [row.standing for row in found.rows] == ["", ""]
    assert "no winner can be named" in found.sentence


def test_seeds_that_change_nothing_are_noticed() -> None:
    found = judge(outcomes(none=[2.0, 2.0], auto=[1.0, 1.0]), ["t.py"])
    assert found.alike
    assert "can be seeded from outside" in found.sentence


def test_everything_diverged() -> None:
    found = judge(outcomes(none=[math.nan, math.nan]), ["t.py"])
    assert "No training ended with a loss" in found.sentence
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("losses", "norms", "trouble"),
    [
        (np.linspace(2, 1, 100), np.ones(100), ""),
        (np.linspace(2, 5, 100), np.ones(100), "loss grew from 2.06 to 4.94"),
        (np.r_[np.ones(50), np.full(50, np.nan)], np.ones(100), "loss not finite"),
        (np.ones(100), np.r_[np.ones(50), np.full(50, np.inf)], "gradients not finite"),
        (np.full(100, np.nan), np.ones(100), ""),
        (np.linspace(-1, -3, 100), np.ones(100), ""),
    ],
)
def test_what_counts_as_diverged(losses: Any, norms: Any, trouble: str) -> None:
    assert divergence(losses, norms) == trouble


def test_bands_go_over_the_seeds() -> None:
    rows = [
        TrainingResult("none", seed, steps=100, final_loss=1.0, curve=curve(np.full(100, value)))
        for seed, value in enumerate((1.0, 2.0, 4.0))
    ]
    steps, low, middle, high = judge(rows, ["t.py"]).rows[0].band()
    assert (len(steps), set(low), set(middle), set(high)) == (100, {1.0}, {2.0}, {4.0})


def test_curves_keep_the_level_and_not_the_spike() -> None:
    losses = np.ones(10_000)
    losses[5000] = 1e6
    found = curve(losses)
    assert found.losses.tolist() == [1.0] * 200


def grid_of(tmp_path: Path, **changes: Any) -> Grid:
    script = tmp_path / "train.py"
    script.write_text(changes.pop("source", "pass"))
    given = {"arguments": (), "specs": ("none", "auto"), "seeds": 2, **changes}
    return Grid(script=str(script), folder=tmp_path / "out", **given)


def test_a_cell_is_reused_only_while_nothing_changed(tmp_path: Path) -> None:
    grid = grid_of(tmp_path)
    grid.folder.mkdir()
    cell = grid.cells[0]
    assert cell.finished() is None
    cell.note.write_text(json.dumps({"digest": cell.digest, "exit": 0, "seconds": 1.0}))
    assert grid_of(tmp_path).cells[0].finished() is None, "it recorded nothing"
    cell.run_file.touch()
    assert grid_of(tmp_path).cells[0].finished()
    assert grid_of(tmp_path, source="print()").cells[0].finished() is None
    assert grid_of(tmp_path, arguments=("--lr", "1")).cells[0].finished() is None
    digests = {c.digest for c in grid.cells}
    assert len(digests) == len({c.run_file for c in grid.cells}) == 4


def test_the_command_replaces_clip_calls_unless_told_not_to(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, specs=("norm:1.0", "script"), arguments=("--lr", "1"))
    first, second = (grid.command(cell) for cell in grid.cells[:2])
    assert first[first.index("--clip") + 1] == "norm:1.0"
    assert "--clip" not in second
    assert first[-3:] == [grid.script, "--lr", "1"]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"specs": ()}, UsageError),
        ({"specs": ("none", "none")}, UsageError),
        ({"specs": ("nome",)}, SpecError),
        ({"seeds": 0}, UsageError),
    ],
)
def test_grids_that_cannot_be(tmp_path: Path, changes: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        grid_of(tmp_path, **changes)


def test_a_cell_is_measured_from_its_run_file(tmp_path: Path) -> None:
    cell = Cell("norm:1.0", 0, tmp_path, "x", "d")
    with RunWriter(cell.run_file) as writer:
        ids = writer.add_tensors([TensorInfo("w")])
        for step in range(40):
            clipped = step % 4 == 0
            record = StepRecord(
                step=step,
                loss=2.0 - step / 40,
                norm=2.0,
                coef=0.5 if clipped else 1.0,
                action="clip" if clipped else "none",
                cosine=0.6 if clipped else 1.0,
            )
            ones = np.ones(1)
            writer.write_step(record, ids, ones, ones, ones * 0, ones * 0)
    (found,) = measure(cell, {"exit": 0, "seconds": 3.5})
    assert (found.steps, found.clip_rate, found.seconds, found.trouble) == (40, 0.25, 3.5, "")
    assert found.cosine == pytest.approx(0.9)
    assert found.final_loss == pytest.approx(2.0 - 38.5 / 40)


def test_a_crash_is_a_result(tmp_path: Path) -> None:
    cell = Cell("none", 0, tmp_path, "x", "d")
    cell.log.write_text("Traceback\nValueError: no data\n")
    (found,) = measure(cell, {"exit": 1, "seconds": 1.0})
    assert found.trouble == "failed: ValueError: no data"


def test_the_optimizers_of_a_gan_are_compared_each_by_itself(tmp_path: Path) -> None:
    outcomes = []
    for seed, spec in ((s, spec) for s in range(2) for spec in ("none", "auto")):
        cell = Cell(spec, seed, tmp_path, f"{spec}{seed}", "d")
        with RunWriter(cell.run_file) as writer:
            ids = [writer.add_tensors([TensorInfo(n, optimizer=k)]) for k, n in enumerate("dg")]
            writer.update_info(optimizers=[{"class": "Adam", "index": k} for k in (0, 1)])
            for step in range(40):
                # the critic is better off without clipping, the generator with it
                for k, loss in enumerate((1.0, 5.0) if spec == "none" else (2.0, 3.0)):
                    record = StepRecord(step=step, loss=loss + seed / 10, norm=k + 1, optimizer=k)
                    ones = np.ones(1)
                    writer.write_step(record, ids[k], ones, ones, ones * 0, ones * 0)
        outcomes += measure(cell, {"exit": 0, "seconds": 1.0})
    outcomes.append(TrainingResult("auto", 2, trouble="failed: KeyError"))
    critic, generator = judge_each(outcomes, ["gan.py"])
    assert (critic.optimizer, generator.optimizer) == ("Adam 0", "Adam 1")
    finals = [[row.final_loss for row in part.rows] for part in (critic, generator)]
    np.testing.assert_allclose(finals, [[1.05, 2.05], [5.05, 3.05]])
    assert [row.diverged for row in (*critic.rows, *generator.rows)] == [0, 1, 0, 1]
    plain = as_plain([critic, generator])
    assert [part["optimizer"] for part in plain["optimizers"]] == ["Adam 0", "Adam 1"]
    assert "policies" in as_plain([critic])
