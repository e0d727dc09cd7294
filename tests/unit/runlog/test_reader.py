"""Reading: every kind of bad file is told apart, no file is ever changed, slices are exact."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steadygrad.errors import RunFileError, UsageError
from steadygrad.runlog import (
    Event,
    Run,
    RunWriter,
    StepRecord,
    TensorInfo,
    as_run,
    encode,
    open_run,
)
from steadygrad.runlog.schema import APPLICATION_ID
from steadygrad.vocabulary import FIGURES


def digests(folder: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.iterdir()}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """700 steps, so that two full chunks and a short one are read."""
    path = tmp_path_factory.mktemp("run") / "run.db"
    rng = np.random.default_rng(0)
    with RunWriter(path) as out:
        ids = out.add_tensors([TensorInfo(f"t{i}", (1000,)) for i in range(6)])
        for row in range(700):
            norms, counts = rng.lognormal(size=6), rng.integers(0, 3, size=6)
            out.write_step(StepRecord(row, norm=rng.lognormal()), ids, norms, norms, counts, counts)
    return open_run(path)


def test_nothing_there() -> None:
    with pytest.raises(RunFileError, match=r"no run file at .*steadygrad run"):
        open_run("/nowhere/run.db")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match="is a folder"):
        open_run(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"hello, world" * 20, "not an SQLite database")],
)
def test_not_a_database(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(content)
    with pytest.raises(RunFileError, match=message):
        open_run(path)


def test_a_database_of_somebody_else(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "x.db") as connection:
        connection.execute("CREATE TABLE t (x)")
    connection.close()
    with pytest.raises(RunFileError, match="steadygrad did not write it"):
        open_run(tmp_path / "x.db")


def test_a_newer_format(record_run: Callable[..., Path], figures: Callable[..., dict]) -> None:
    path = record_run(figures(1, 1))
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(RunFileError, match=r"has format 99.*pip install --upgrade"):
        open_run(path)


def test_a_damaged_file(record_run: Callable[..., Path], figures: Callable[..., dict]) -> None:
    path = record_run(figures(2000, 20))
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(bytes(content))
    with pytest.raises(RunFileError, match="cannot be read"):
        open_run(path).steps.norm.sum()


def test_a_file_whose_tables_are_missing(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "x.db") as connection:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("CREATE TABLE t (x)")
    connection.close()
    with pytest.raises(RunFileError, match=r"table info is missing.*before the first step"):
        open_run(tmp_path / "x.db")


def test_a_run_of_no_steps_opens(tmp_path: Path) -> None:
    RunWriter(tmp_path / "run.db").close()
    run = open_run(tmp_path / "run.db")
    assert len(run) == 0
    assert run.steps.norm.shape == (0,)
    assert run.tensor_norms.shape == (0, 0)
    assert "0 steps" in repr(run)


def test_reading_a_finished_file_leaves_no_trace(run: Run) -> None:
    before = digests(run.path.parent)
    open_run(run.path).tensor_norms.sum()
    assert digests(run.path.parent) == before
    assert list(before) == ["run.db"]


def test_reading_a_copy_taken_without_its_journal_leaves_no_trace(
    figures: Callable[..., dict], record_run: Callable[..., Path], tmp_path: Path
) -> None:
    path = record_run(figures(3, 2))
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    assert path.read_bytes()[18] == 2
    before = digests(tmp_path)
    assert len(open_run(path).steps) == 3
    assert digests(tmp_path) == before


def test_reading_a_live_file_leaves_it_unchanged(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run.db") as out:
        ids = out.add_tensors([TensorInfo("a")])
        out.write_step(StepRecord(0, norm=2.0), ids, [2.0], [1.0], [0], [0])
        out.flush()
        before = digests(tmp_path)
        run = open_run(tmp_path / "run.db")
        assert run.steps.norm.tolist() == [2.0]
        assert run.tensor_norms.shape == (1, 1)
        after = digests(tmp_path)
        for name in ("run.db", "run.db-wal"):
            assert before[name] == after[name]


def test_a_run_stays_as_it_was_opened(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run.db") as out:
        ids = out.add_tensors([TensorInfo("a")])
        for step in range(10):
            out.write_step(StepRecord(step), ids, [2.0], [1.0], [0], [0])
        out.flush()
        early = open_run(tmp_path / "run.db")
        ids += out.add_tensors([TensorInfo("b")])
        for step in range(10, 600):
            out.write_step(StepRecord(step), ids, [2.0, 3.0], [1.0, 1.0], [0, 0], [0, 0])
        out.flush()
        assert early.tensor_norms.shape == (10, 1)
        assert len(early.steps) == 10
    assert early.tensor_max_abs.shape == (10, 1)
    np.testing.assert_allclose(early.tensor_max_abs, 1.0, rtol=0.002)
    assert len(open_run(tmp_path / "run.db")) == 600


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize(
    "rows",
    [
        slice(None),
        slice(100, 300),
        slice(0, 700, 97),
        slice(600, 10, -3),
        slice(5, 5),
        [3, 3, 699, 0],
        np.arange(250, 260),
        [-1, -700],
    ],
    ids=str,
)
@pytest.mark.parametrize("tensors", [None, slice(1, 3), [4, 0], [2, 2]], ids=str)
def test_slices_equal_the_whole(run: Run, rows: object, tensors: object, figure: str) -> None:
    whole = {
        "norms": run.tensor_norms,
        "max_abs": run.tensor_max_abs,
        "nonfinite": run.tensor_nonfinite,
        "zeros": run.tensor_zeros,
    }[figure]
    columns = slice(None) if tensors is None else tensors
    np.testing.assert_array_equal(
        run.tensor_rows(rows, tensors, figure=figure), whole[rows][:, columns]
    )


def test_masks_and_single_rows(run: Run) -> None:
    mask = run.steps.norm > np.median(run.steps.norm)
    np.testing.assert_array_equal(run.tensor_rows(mask), run.tensor_norms[mask])
    np.testing.assert_array_equal(run.tensor_rows(-1), run.tensor_norms[-1])
    assert run.tensor_rows(5, [2]).shape == (1,)


@pytest.mark.parametrize("rows", [slice(3, 9), slice(None, None, -1), slice(650, None, 7)])
def test_step_rows_equal_the_whole(run: Run, rows: slice) -> None:
    assert run.step_rows(rows).tobytes() == run.steps[rows].tobytes()


def test_wrong_questions_are_answered(run: Run) -> None:
    with pytest.raises(UsageError, match=r"no figure 'norm'.*norms, max_abs"):
        run.tensor_rows(0, figure="norm")
    with pytest.raises(UsageError, match="no row 700: there are 700"):
        run.tensor_rows([1, 700])
    with pytest.raises(UsageError, match="no tensor 6: there are 6"):
        run.tensor_rows(0, [6])
    with pytest.raises(UsageError, match="row mask must have length 700"):
        run.tensor_rows(np.array([True]))


def test_extremes_survive_the_file(tmp_path: Path) -> None:
    values = np.array([5e-324, 1e-300, 1.0, 1e300, np.inf, np.nan, 0.0])
    with RunWriter(tmp_path / "run.db") as out:
        ids = out.add_tensors([TensorInfo(str(v)) for v in values])
        for step in range(300):
            shifted = np.roll(values, step)
            out.write_step(StepRecord(step), ids, shifted, shifted, np.isnan(shifted), values == 0)
    run = open_run(tmp_path / "run.db")
    expected = np.stack([np.roll(values, step) for step in range(300)])
    np.testing.assert_allclose(run.tensor_norms, expected, rtol=0.002, atol=0)
    np.testing.assert_allclose(
        run.tensor_rows([299], [1, 0]), expected[[299]][:, [1, 0]], rtol=2e-3
    )
    np.testing.assert_array_equal(run.tensor_nonfinite, np.isnan(expected))
    np.testing.assert_array_equal(run.tensor_zeros, np.tile(values == 0, (300, 1)))


def test_small_samples_are_read_once_for_all_optimizers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunWriter(tmp_path / "run.db") as out:
        ids = out.add_tensors([TensorInfo(f"t{i}", optimizer=i) for i in range(3)])
        out.write_sample("weight_norm", 0, ids, np.array([1.0, 2.0, 3.0]))
    run = open_run(tmp_path / "run.db")
    first = run.samples("weight_norm")
    monkeypatch.setattr(run._source, "samples", lambda name: pytest.fail("read again"))
    assert run.samples("weight_norm") is first
    monkeypatch.setattr("steadygrad.runlog.run.KEPT_BYTES", 0)
    whole = open_run(tmp_path / "run.db")
    one, other = whole.samples("weight_norm"), whole.samples("weight_norm")
    assert one is not other
    np.testing.assert_array_equal(one[1], first[1])


@pytest.mark.parametrize("held", [True, False])
def test_samples_of_one_optimizer_are_those_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    if not held:
        monkeypatch.setattr("steadygrad.runlog.reader.KEPT_BYTES", 0)
    with RunWriter(tmp_path / "run.db") as out:
        ids = out.add_tensors([TensorInfo(f"t{i}", optimizer=i // 2) for i in range(6)])
        for step in range(9):  # one of each in its turn, one of both in the third
            own = ids[2 * (step % 3) :][:2] if step % 4 else ids[::2]
            out.write_sample("weight_norm", step, own, np.arange(len(own)) + 10.0 * step)
    run = open_run(tmp_path / "run.db")
    steps, values = run.samples("weight_norm")
    for columns in ([0, 1], [5, 4], [0, 3, 2], []):
        some, own = run.samples_of("weight_norm", columns)
        there = np.isin(steps, some)
        np.testing.assert_array_equal(own, values[there][:, columns])
        assert np.isnan(values[~there][:, columns]).all()


def test_names_with_any_character_come_back(tmp_path: Path) -> None:
    names = ["a'b\"; DROP TABLE steps;--", "\n\t\x1b[31m", "名前🙂", "", "a" * 5000]
    with RunWriter(tmp_path / "run.db") as out:
        out.add_tensors([TensorInfo(name) for name in names])
    assert [tensor.name for tensor in open_run(tmp_path / "run.db").tensors] == names


@pytest.mark.parametrize("name", ["with space.db", "100%.db", "q?x=1#y.db", "ü.db"])
def test_paths_with_any_character(name: str, tmp_path: Path) -> None:
    with RunWriter(tmp_path / name) as out:
        out.write_step(StepRecord(0), [], [], [], [], [])
        out.flush()
        assert len(open_run(tmp_path / name)) == 1
    assert len(open_run(tmp_path / name)) == 1


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    RunWriter("run.db").close()
    run = open_run("run.db")
    assert os.fspath(run.path) == "run.db"
    assert as_run(run) is run
    assert as_run("run.db").tensors == []


def test_from_arrays_behaves_as_a_file() -> None:
    norms = np.arange(6.0).reshape(3, 2)
    event = Event(1, 0.0, "alert")
    run = Run.from_arrays(
        steps={"norm": [1.0, 2.0, 3.0], "action": ["none", "clip", "skip"]},
        tensors=["a", TensorInfo("b", (2,))],
        tensor_norms=norms,
        info={"seed": 1},
        events=[event],
        samples={"weight_norm": ([0, 2], [[1.0, 2.0], [3.0, 4.0]])},
    )
    assert run.steps.step.tolist() == [0, 1, 2]
    assert run.steps.coef.tolist() == [1.0] * 3
    assert run.steps.threshold.tolist() == [np.inf] * 3
    assert run.steps[run.steps.action == "clip"].norm.tolist() == [2.0]
    np.testing.assert_array_equal(run.tensor_rows([2, 0], [1]), [[5.0], [1.0]])
    assert np.isnan(run.tensor_zeros).all()
    assert run.samples("weight_norm")[0].tolist() == [0, 2]
    assert run.sample_names == ["weight_norm"]
    assert run.samples("other")[1].shape == (0, 2)
    assert (run.events, run.info, run.path) == ([event], {"seed": 1}, None)


def test_from_arrays_takes_records_and_tables() -> None:
    records = [StepRecord(0, norm=1.0), StepRecord(1, norm=2.0, action="clip")]
    run = Run.from_arrays(steps=records)
    again = Run.from_arrays(steps=np.asarray(run.steps))
    assert again.steps.action.tolist() == ["none", "clip"]
    assert again.steps.norm.tolist() == [1.0, 2.0]


def test_from_arrays_says_what_does_not_fit() -> None:
    with pytest.raises(UsageError, match="columns of one length"):
        Run.from_arrays(steps={"norm": [1.0], "loss": [1.0, 2.0]})
    with pytest.raises(UsageError, match="'gradnorm'"):
        Run.from_arrays(steps={"gradnorm": [1.0]})
    with pytest.raises(UsageError, match=r"must have shape \(1, 1\)"):
        Run.from_arrays(steps={"norm": [1.0]}, tensors=["a"], tensor_norms=[[1.0, 2.0]])


def test_a_few_rows_of_a_long_run_read_a_few_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunWriter(tmp_path / "run.db") as writer:
        ids = np.array(writer.add_tensors([TensorInfo("w", (3,))]))
        for step in range(3000):
            writer.write_step(StepRecord(step), ids, [step], [1.0], [0], [0])
    run = open_run(tmp_path / "run.db")
    unpacked: list[int] = []
    real = encode.unpack

    def counted(blob: bytes, dtype: Any, shape: tuple[int, ...]) -> Any:
        unpacked.append(shape[0])
        return real(blob, dtype, shape)

    monkeypatch.setattr(encode, "unpack", counted)
    rows = np.array([0, 5, 2500, 2999])
    assert run.tensor_rows(rows)[:, 0] == pytest.approx(rows, rel=encode.RELATIVE_ERROR)
    assert len(unpacked) <= 2 * 3  # offsets and norms of three chunks
