"""Frames: they fit the terminal, lose no spike, and no name can drive the terminal."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from steadygrad.rules import Finding
from steadygrad.runlog import RunWriter, StepRecord, TensorInfo
from steadygrad.watch.frame import Frame, short_name
from steadygrad.watch.snapshot import Diagnosis, FrameContent, take
from steadygrad.watch.spark import CROSS, spark

NAMES = ["\x1b[2Jevil", "[red]markup", "名前.weight"] + [
    f"transformer.encoder.layers.{i}.self_attention.in_proj_weight" for i in range(37)
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 steps of 40 tensors; a spike at 150, a NaN in tensor 4 at the end, step 299 skipped."""
    made = tmp_path_factory.mktemp("run") / "run.db"
    with RunWriter(made) as out:
        ids = out.add_tensors([TensorInfo(name, (100,)) for name in NAMES])
        for step in range(300):
            norms = np.linspace(1.0, 2.0, 40) * (1000.0 if step == 150 else 1.0)
            largest, counts = norms / 10, np.zeros(40)
            if step == 299:
                norms[4], counts[4] = math.nan, 7
            broken = step == 299
            record = StepRecord(
                step, time=1e9 + step / 10, loss=3.0 - step / 100,
                norm=math.nan if broken else float(np.linalg.norm(norms)), threshold=20.0,
                coef=0.02 if step == 150 else 1.0,
                action="skip" if broken else "clip" if step == 150 else "none", lr=0.001,
                nonfinite=int(counts.sum()),
            )  # fmt: skip
            out.write_step(record, ids, norms, largest, counts, np.full(40, 25))
        out.update_info(started=1e9 - 5)
    return made


def drawn(
    snapshot: FrameContent, width: int = 80, height: int = 24, **options: object
) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, force_terminal=False)
    console.print(Frame(snapshot, **options))
    return out.getvalue().splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 12), (120, 50), (60, 24)])
@pytest.mark.parametrize("keys", [True, False])
def test_a_frame_fits_its_terminal(path: Path, width: int, height: int, keys: bool) -> None:
    finding = Finding("SG101", "Gradients turned non-finite. " * 5, "error", 1.0)
    lines = drawn(take(path, [finding] * 5), width, height, keys=keys)
    assert len(lines) <= height
    assert max(cell_len(line) for line in lines) <= width
    assert any(line.startswith("SG101") for line in lines)
    assert any("and 2 more" in line for line in lines)


def test_what_a_frame_says(path: Path) -> None:
    lines = drawn(take(path), now=1e9 + 31)
    text = "\n".join(lines)
    assert lines[0].startswith("run.db  ended (ok)  300 steps  10 steps/s  34.9 s")
    assert lines[1].split()[:2] == ["loss", "0.01"]
    assert lines[2].split()[:3] == ["grad", "norm", "NaN"]
    assert lines[2].rstrip().endswith(CROSS)
    assert "threshold 20  coef 1  clipped 0 % (last 100: 0 %)  skipped 1  lr 0.001" in text


def test_the_broken_tensor_comes_first_and_then_the_largest(path: Path) -> None:
    snapshot = take(path)
    assert snapshot.tensors[0].name == NAMES[4]
    assert [row.name for row in snapshot.tensors[1:3]] == [NAMES[39], NAMES[38]]
    row = next(line for line in drawn(snapshot) if "layers.1." in line or ".l.1." in line)
    assert row.split()[1:6] == ["NaN", "0.11", "25", "%", "7"]


def test_pages_show_every_tensor_once_and_begin_again(path: Path) -> None:
    snapshot = take(path)
    pages = [drawn(snapshot, page=page) for page in range(3)]
    shown = [
        line
        for page in pages
        for line in page
        if "weight" in line or "evil" in line or "mark" in line
    ]
    assert len(shown) == len(NAMES)
    assert drawn(snapshot, page=3) == pages[0]
    assert drawn(snapshot, page=-1) == pages[2]


def test_no_name_drives_the_terminal(path: Path) -> None:
    text = "\n".join(line for page in range(3) for line in drawn(take(path), page=page))
    assert "\x1b" not in text
    assert "[red]markup" in text
    assert "\ufffd[2Jevil" in text


def test_two_optimizers_have_a_curve_each(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "gan.db") as out:
        for step in range(10):
            out.write_step(StepRecord(step, norm=1.0), [], [], [], [], [])
            out.write_step(StepRecord(step, norm=2.0, optimizer=1), [], [], [], [], [])
    lines = drawn(take(tmp_path / "gan.db"))
    assert [line for line in lines if line.startswith("optimizer")] == [
        "optimizer 0",
        "optimizer 1",
    ]
    assert not any(line.startswith("loss") for line in lines)


def test_a_run_of_no_steps_has_a_frame(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run.db") as out:
        out.flush()
        assert drawn(take(tmp_path / "run.db"))[1] == "no steps yet"


def test_a_run_that_stands_still_says_so(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run.db") as out:
        out.write_step(StepRecord(0, time=1000.0), [], [], [], [], [])
        out.flush()
        snapshot = take(tmp_path / "run.db")
    assert Frame(snapshot, now=1010.0).state() == "recording"
    assert Frame(snapshot, now=1372.0).state() == "no step for 6 min 12 s"


def test_a_spike_survives_any_width() -> None:
    values = np.ones(1000)
    values[:250] = 50.0  # an average would drown the spike below these
    values[537] = 100.0
    for width in (5, 37, 80):
        line = spark(values, width).plain
        assert line.count("█") == 1
        columns = np.array_split(np.arange(1000), width)
        assert 537 in columns[line.index("█")]


def test_what_is_not_finite_is_a_cross_at_any_width() -> None:
    values = np.ones(1000)
    values[3], values[990] = math.inf, math.nan
    for width in (5, 37, 80):
        line = spark(values, width, log=True).plain
        assert (line[0], line[-1]) == (CROSS, CROSS)
        assert len(line) == width


@pytest.mark.parametrize("values", [[], [5.0], [0.0, 0.0], [0.0, 1.0], [math.nan]])
def test_odd_curves_draw(values: list[float]) -> None:
    assert len(spark(values, 10, log=True).plain) == len(values)


def test_clipped_steps_have_another_colour() -> None:
    line = spark([1.0, 2.0], 10, marked=[False, True])
    assert [str(span.style) for span in line.spans] == ["cyan", "yellow"]


def test_short_names_keep_numbers_and_ends() -> None:
    short = {short_name(name, 30) for name in NAMES[3:]}
    assert len(short) == 37
    assert all(len(name) <= 30 for name in short)


def test_the_diagnosis_rests(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []
    monkeypatch.setattr("steadygrad.watch.snapshot.diagnose", lambda p: calls.append(p) or [])
    diagnosis = Diagnosis(path)
    assert diagnosis.findings() == diagnosis.findings() == []
    assert calls == [path]
