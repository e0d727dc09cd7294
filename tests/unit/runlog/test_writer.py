"""What is handed to a RunWriter stands in the file, whatever the run looks like."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from steadygrad.errors import RecordingWarning, RunFileError
from steadygrad.report.headline import verdict
from steadygrad.runlog import (
    Event,
    RunWriter,
    StepRecord,
    TensorInfo,
    open_run,
    pump,
    reader,
    store,
    writer,
)
from steadygrad.runlog.encode import RELATIVE_ERROR
from steadygrad.runlog.facts import without_secrets


def one_step(writer: RunWriter, step: int, ids: list[int], norm: float = 1.0) -> None:
    count = len(ids)
    figures = np.full(count, norm), np.full(count, norm), np.zeros(count), np.zeros(count)
    writer.write_step(StepRecord(step, norm=norm), ids, *figures)


@pytest.mark.parametrize("rows", [0, 1, 255, 256, 700])
def test_everything_comes_back(
    rows: int, figures: Callable[..., dict[str, np.ndarray]], record_run: Callable[..., Path]
) -> None:
    given = figures(rows, 5)
    given["nonfinite"][::7, 2] = 3
    run = open_run(record_run(given))
    assert len(run) == rows == len(run.steps)
    np.testing.assert_array_equal(run.steps.step, np.arange(rows))
    totals = [np.linalg.norm(row) for row in given["norms"]]
    np.testing.assert_array_equal(run.steps.norm, totals)
    np.testing.assert_allclose(run.tensor_norms, given["norms"], rtol=RELATIVE_ERROR)
    np.testing.assert_allclose(run.tensor_max_abs, given["max_abs"], rtol=RELATIVE_ERROR)
    np.testing.assert_array_equal(run.tensor_nonfinite, given["nonfinite"])
    np.testing.assert_allclose(run.tensor_zeros, given["zeros"] / 1000, atol=2e-5)


def test_every_column_of_a_step_is_exact(tmp_path: Path) -> None:
    record = StepRecord(
        step=0, time=1.5, loss=math.nan, norm=math.inf, threshold=0.1, coef=1 / 3, action="skip",
        lr=1e-300, loss_scale=65536.0, nonfinite=2**40, cosine=-0.5, optimizer=3,
    )  # fmt: skip
    with RunWriter(tmp_path / "run.db") as out:
        out.write_step(record, [], [], [], [], [])
    row = open_run(tmp_path / "run.db").steps[0]
    for name in row.dtype.names:
        np.testing.assert_array_equal(row[name], getattr(record, name))


def test_missing_time_is_filled_in(tmp_path: Path) -> None:
    before = time.time()
    with RunWriter(tmp_path / "run.db") as out:
        one_step(out, 0, [])
    assert before <= open_run(tmp_path / "run.db").steps.time[0] <= time.time()


def test_arrays_may_be_used_again_at_once(tmp_path: Path) -> None:
    buffer, ids = np.ones(2), np.arange(2)
    with RunWriter(tmp_path / "run.db") as out:
        out.add_tensors([TensorInfo("a"), TensorInfo("b")])
        for step in range(50):
            buffer[:] = step
            out.write_step(StepRecord(step), ids, buffer, buffer, buffer, buffer)
        buffer[:] = ids[:] = -1
    norms = open_run(tmp_path / "run.db").tensor_norms
    np.testing.assert_allclose(norms[:, 0], np.arange(50.0), rtol=RELATIVE_ERROR)


def test_two_optimizers_with_their_own_tensors(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "gan.db") as out:
        first = out.add_tensors([TensorInfo("g.a"), TensorInfo("g.b")])
        second = out.add_tensors([TensorInfo("d.a", optimizer=1)])
        for step in range(300):
            one_step(out, step, first, 2.0)
            one_step(out, step, second, 3.0)
    run = open_run(tmp_path / "gan.db")
    assert [t.name for t in run.tensors] == ["g.a", "g.b", "d.a"]
    expected = np.tile([[2.0, 2.0, np.nan], [np.nan, np.nan, 3.0]], (300, 1))
    np.testing.assert_allclose(run.tensor_norms, expected, rtol=RELATIVE_ERROR)
    np.testing.assert_array_equal(np.isnan(run.tensor_nonfinite), np.isnan(expected))


def test_tensors_added_later_are_unknown_before(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run.db") as out:
        ids = out.add_tensors([TensorInfo("a")])
        one_step(out, 0, ids)
        ids += out.add_tensors([TensorInfo("b", (3, 4), "bfloat16", "Linear", 2, 1)])
        one_step(out, 1, ids)
        one_step(out, 2, ids[::-1])
    run = open_run(tmp_path / "run.db")
    assert run.tensors[1] == TensorInfo("b", (3, 4), "bfloat16", "Linear", 2, 1)
    np.testing.assert_allclose(run.tensor_norms, [[1, np.nan], [1, 1], [1, 1]], rtol=0.002)


def test_samples_and_events(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run.db") as out:
        ids = out.add_tensors([TensorInfo("a"), TensorInfo("b")])
        out.write_sample("weight_norm", 0, ids, [1 / 3, math.inf])
        out.write_sample("weight_norm", 100, ids[1:], [7.0])
        out.write_event("script_clip", {"max_norm": 1.0, "line": 12}, step=4)
        out.write_event("odd", {"value": np.float32(2), "path": Path("x"), "set": {1}})
    run = open_run(tmp_path / "run.db")
    steps, values = run.samples("weight_norm")
    assert steps.tolist() == [0, 100]
    np.testing.assert_array_equal(values, [[1 / 3, math.inf], [math.nan, 7.0]])
    assert run.sample_names == ["weight_norm"]
    assert run.samples("none such")[1].shape == (0, 2)
    assert run.events[0] == Event(
        4, run.events[0].time, "script_clip", {"max_norm": 1.0, "line": 12}
    )
    assert run.events[1].data == {"value": 2.0, "path": "x", "set": [1]}


def test_info_is_merged_and_basic_facts_are_there(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run.db", info={"seed": 3, "python": "mine"}) as out:
        out.update_info(seed=4, optimizers=[{"class": "Adam", "index": 0}])
        out.overhead_seconds += 2.0
    info = open_run(tmp_path / "run.db").info
    assert info["seed"] == 4
    assert info["python"] == "mine"
    assert info["optimizers"] == [{"class": "Adam", "index": 0}]
    assert info["overhead_seconds"] >= 2.0
    assert info["started"] <= info["ended"]
    assert info["wall_seconds"] >= 0


def test_overhead_counts_the_time_of_handing_over(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run.db") as out:
        for step in range(100):
            one_step(out, step, [])
        assert 0 < out.overhead_seconds < 1


@pytest.mark.parametrize(
    ("command", "clean"),
    [
        (["a.py", "--lr", "0.1"], ["a.py", "--lr", "0.1"]),
        (["a.py", "--hf_token", "abc", "-v"], ["a.py", "--hf_token", "***", "-v"]),
        (["a.py", "--wandb-api-key=abc"], ["a.py", "--wandb-api-key=***"]),
        (["a.py", "WANDB_API_KEY=abc"], ["a.py", "WANDB_API_KEY=***"]),
        (["a.py", "--password", "--fast"], ["a.py", "--password", "--fast"]),
        (["a.py", "--url", "s3://me:pw@host/x"], ["a.py", "--url", "***"]),
        (["a.py", "password", "horse", "train"], ["a.py", "password", "***", "train"]),
        (["a.py", "--set=token", "horse"], ["a.py", "--set=token", "***"]),
        (["a.py", "--p4ssword", "horse", "x"], ["a.py", "***", "***", "x"]),
        (["a.py", "--\uff50assword", "horse"], ["a.py", "***", "***"]),
        (["a.py", "--seed-phrase", "horse"], ["a.py", "--seed-phrase", "***"]),
        (["a.py", "--sshKey=horse", "--oauth2", "x"], ["a.py", "--sshKey=***", "--oauth2", "***"]),
        (["tokenizer.json", "--monkey", "1"], ["tokenizer.json", "--monkey", "1"]),
        (
            ["python", "a.py", "-u", "bob:x", "+m.lr=0.1"],
            ["python", "a.py", "-u", "***", "+m.lr=0.1"],
        ),
        (
            ["python", "-m", "a.b", "--token", "-x9", "more"],
            ["python", "-m", "a.b", "--token", "***", "more"],
        ),
    ],
)
def test_secrets_in_the_command_line_are_blotted_out(
    command: list[str], clean: list[str], tmp_path: Path
) -> None:
    assert without_secrets(command) == clean
    RunWriter(tmp_path / "run.db", info={"command": command}).close()
    assert open_run(tmp_path / "run.db").info["command"] == clean


def test_no_environment_variable_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SECRET", "hunter2-not-to-be-seen")
    RunWriter(tmp_path / "run.db").close()
    assert b"hunter2" not in (tmp_path / "run.db").read_bytes()


def test_an_exception_is_noted_and_passes(tmp_path: Path) -> None:
    def train() -> None:
        with RunWriter(tmp_path / "run.db") as out:
            one_step(out, 0, [])
            raise KeyError("boom")

    with pytest.raises(KeyError, match="boom"):
        train()
    run = open_run(tmp_path / "run.db")
    assert run.info["exit"] == "KeyError"
    assert len(run) == 1


def test_an_exit_that_was_told_is_kept(tmp_path: Path) -> None:
    out = RunWriter(tmp_path / "run.db")
    out.update_info(exit="ok", ended=5.0)
    out.__exit__(SystemExit, SystemExit(0), None)
    info = open_run(tmp_path / "run.db").info
    assert (info["exit"], info["ended"]) == ("ok", 5.0)


def test_a_dropped_writer_closes_its_file(tmp_path: Path) -> None:
    out = RunWriter(tmp_path / "run.db")
    one_step(out, 0, [])
    del out
    gc.collect()
    assert sorted(os.listdir(tmp_path)) == ["run.db"]
    assert len(open_run(tmp_path / "run.db")) == 1


def test_closing_twice_and_writing_after_is_harmless(tmp_path: Path) -> None:
    out = RunWriter(tmp_path / "run.db")
    ids = out.add_tensors([TensorInfo("a")])
    out.close()
    out.close()
    one_step(out, 0, ids)
    out.write_event("late", {})
    assert not out.recording
    assert not out.flush()
    assert len(open_run(tmp_path / "run.db")) == 0


def test_an_existing_file_is_never_overwritten_silently(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    with RunWriter(path) as out:
        one_step(out, 0, [])
    with pytest.raises(RunFileError, match=r"exists already.*force=True"):
        RunWriter(path)
    assert len(open_run(path)) == 1
    RunWriter(path, force=True).close()
    assert len(open_run(path)) == 0


def test_force_replaces_run_files_only(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text("precious")
    with pytest.raises(RunFileError, match="not a run file"):
        RunWriter(path, force=True)
    assert path.read_text() == "precious"


def test_folders_on_the_way_are_made(tmp_path: Path) -> None:
    RunWriter(tmp_path / "a" / "b" / "run.db").close()
    assert len(open_run(tmp_path / "a" / "b" / "run.db")) == 0


def test_figures_that_do_not_fit_end_the_recording_with_one_warning(tmp_path: Path) -> None:
    out = RunWriter(tmp_path / "run.db")
    ids = out.add_tensors([TensorInfo("a"), TensorInfo("b")])
    one_step(out, 0, ids)
    out.flush()
    with pytest.warns(RecordingWarning, match="training goes on") as caught:  # noqa: PT031
        out.write_step(StepRecord(1), ids, [1.0], [1.0, 2.0], [0, 0], [0, "x"])
        out.flush()
        one_step(out, 2, ids)
        out.close()
    assert len(caught) == 1
    assert len(open_run(tmp_path / "run.db")) == 1


def test_a_warning_turned_error_does_not_reach_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = RunWriter(blocker / "run.db")
        one_step(out, 0, out.add_tensors([TensorInfo("a")]))
        out.close()
    assert "the training goes on" in capsys.readouterr().err.lower()


def test_a_path_that_cannot_be_made_warns_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(RecordingWarning, match="stopped") as caught:  # noqa: PT031
        out = RunWriter(tmp_path / "file" / "run.db")
        assert out.add_tensors([TensorInfo("a"), TensorInfo("b")]) == [0, 1]
        one_step(out, 0, [0, 1])
        out.close()
    assert len(caught) == 1
    assert not out.recording


def test_a_full_disk_ends_the_recording_not_the_training(tmp_path: Path) -> None:
    out = RunWriter(tmp_path / "run.db")
    ids = out.add_tensors([TensorInfo(f"t{i}", (10,)) for i in range(50)])
    out.flush()
    out._recorder.store._connection.execute("PRAGMA max_page_count = 40")  # 160 KiB of disk
    rng = np.random.default_rng(0)
    with pytest.warns(RecordingWarning, match="full") as caught:  # noqa: PT031
        for step in range(4000):
            norms = rng.lognormal(size=50)
            out.write_step(StepRecord(step), ids, norms, norms, np.zeros(50), np.zeros(50))
        out.close()
    assert len(caught) == 1
    run = open_run(tmp_path / "run.db")
    assert run.tensor_norms.shape == (len(run), 50)
    assert len(run) < 4000
    assert run.info["recording_stopped"]["recorded"] == len(run)
    assert run.info["recording_stopped"]["steps"] == 4000
    assert f"{len(run):,} of at least 4,000 steps" in verdict(run, []).sentence


def test_a_stuck_disk_costs_steps_but_they_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    write = store.Store.write

    def stuck(self: store.Store, items: list) -> None:
        gate.wait(20)
        write(self, items)

    monkeypatch.setattr(store.Store, "write", stuck)
    monkeypatch.setattr(writer, "Pump", lambda *a, **k: pump.Pump(
        *a, **k, max_bytes=100_000, patience=0.05))  # fmt: skip
    out = RunWriter(tmp_path / "run.db")
    for step in range(500):
        one_step(out, step, [])
    gate.set()
    assert out.flush()
    one_step(out, 500, [])
    out.close()
    run = open_run(tmp_path / "run.db")
    (gap,) = [event for event in run.events if event.kind == "gap"]
    assert len(run) + gap.data["steps"] == 501
    assert gap.data["last_step"] == 499
    assert f"{gap.data['steps']} steps are not on record" in verdict(run, []).sentence
    assert gap.data["first_step"] == gap.step == run.steps.step[-2] + 1


def test_steps_are_seen_while_the_run_is_written(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run.db") as out:
        ids = out.add_tensors([TensorInfo("a")])
        for step in range(600):
            one_step(out, step, ids, float(step))
            if step % 100 == 7:
                assert out.flush()
                run = open_run(tmp_path / "run.db")
                np.testing.assert_array_equal(run.steps.norm, np.arange(step + 1.0))
                np.testing.assert_allclose(
                    run.tensor_norms[:, 0], np.arange(step + 1.0), rtol=0.002
                )


def test_fresh_chunks_are_joined(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    with RunWriter(path) as out:
        ids = out.add_tensors([TensorInfo("a")])
        for step in range(300):
            one_step(out, step, ids, step + 1.0)
            if step % 20 == 0:
                out.flush()
    with sqlite3.connect(path) as connection:
        chunks = connection.execute("SELECT first_row, rows FROM step_chunks").fetchall()
    connection.close()
    assert len(chunks) <= 3
    np.testing.assert_array_equal(open_run(path).steps.norm, np.arange(1.0, 301.0))


def test_a_rollback_journal_is_used_where_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "journal_mode", lambda path: "TRUNCATE")
    out = RunWriter(tmp_path / "run.db")
    one_step(out, 0, [])
    out.flush()
    assert not (tmp_path / "run.db-wal").exists()
    assert len(open_run(tmp_path / "run.db")) == 1
    one_step(out, 1, [])
    out.close()
    assert len(open_run(tmp_path / "run.db")) == 2


def test_a_reader_that_holds_the_lock_delays_but_does_not_end_the_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "journal_mode", lambda path: "TRUNCATE")
    with RunWriter(tmp_path / "run.db") as out:
        reader = sqlite3.connect(tmp_path / "run.db", isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM step_chunks").fetchone()
        one_step(out, 0, [])
        assert not out.flush(timeout=1.5)
        reader.execute("COMMIT")
        reader.close()
        assert out.flush()
    assert len(open_run(tmp_path / "run.db")) == 1


@pytest.mark.parametrize("stays", [False, True])
def test_a_reader_inside_at_the_end_does_not_spoil_the_file(tmp_path: Path, stays: bool) -> None:
    out = RunWriter(tmp_path / "run.db")
    one_step(out, 0, [])
    out.flush()
    reader = sqlite3.connect(tmp_path / "run.db", isolation_level=None, check_same_thread=False)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM step_chunks").fetchone()
    leaving = threading.Timer(0.2, reader.close)
    if not stays:
        leaving.start()
    out.close()
    assert (tmp_path / "run.db").read_bytes()[18] == (2 if stays else 1)  # WAL, or a plain file
    assert len(open_run(tmp_path / "run.db")) == 1
    leaving.cancel() if stays else leaving.join()
    reader.close()
    assert len(open_run(tmp_path / "run.db")) == 1


def test_what_the_file_says_is_plain_sql(tmp_path: Path) -> None:
    RunWriter(tmp_path / "run.db", info={"seed": 1}).close()
    connection = sqlite3.connect(tmp_path / "run.db")
    (text,) = connection.execute("SELECT value FROM info WHERE key = 'seed'").fetchone()
    connection.close()
    assert json.loads(text) == 1


def test_another_set_of_tensors_at_every_step_is_remembered_for_a_while_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MAX_LAYOUTS", 5)
    monkeypatch.setattr(reader, "MOST_LAYOUTS", 3)
    rng = np.random.default_rng(0)
    shown = rng.random((60, 8)) < 0.5
    shown[40:] = shown[:20]  # sets that were forgotten come back
    with RunWriter(tmp_path / "run.db") as writer:
        ids = np.array(writer.add_tensors([TensorInfo(f"w{i}", (3,)) for i in range(8)]))
        for step, there in enumerate(shown):
            norms = 1.0 + ids[there]
            writer.write_step(StepRecord(step), ids[there], norms, norms, norms * 0, norms * 0)
            writer.write_sample("weight_norm", step, ids[there], norms)
        assert writer.flush()
        written = writer._recorder.store
        assert written is not None
        assert len(written._layouts) <= 5
    run = open_run(tmp_path / "run.db")
    expected = np.where(shown, 1.0 + ids, np.nan)
    np.testing.assert_allclose(run.tensor_norms, expected, rtol=RELATIVE_ERROR)
    np.testing.assert_array_equal(run.samples("weight_norm")[1], expected)


def test_a_file_that_is_being_written_is_not_replaced(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run.db") as writer:
        ids = np.array(writer.add_tensors([TensorInfo("w", (3,))]))
        writer.write_step(StepRecord(0), ids, [1.0], [1.0], [0], [0])
        writer.flush()
        with pytest.raises(RunFileError, match="is being written by another process"):
            RunWriter(tmp_path / "run.db", force=True)
        writer.write_step(StepRecord(1), ids, [1.0], [1.0], [0], [0])
    assert len(open_run(tmp_path / "run.db")) == 2
    RunWriter(tmp_path / "run.db", force=True).close()
    assert len(open_run(tmp_path / "run.db")) == 0


SPELLINGS = """
--password @|--password=@|--passwd @|--pass=@|--pwd=@|--pw @|-p@|--hf_token @|--apiKey @|--KEY=@
--mykey=@|--auth user:@|--authorization Bearer§@|-H X-Api-Key:§@|--cookie=session=@|--jwt=@|@
--dsn=postgres://u:@@h/db|--url=https://h/x?sig=@|--webhook=https://hooks.slack.com/services/@
--conn Server=h;User=u;Password=@|{"api_key":§"@"}|--set wandb.api_key=@|+model.token=@|@==
--opts token:§@|HF_TOKEN=@|--token -@|--token --@|--password-file=/x/@|hf_@abcdefghij|sk-@abc
ghp_@|AKIA@|--token:@|/password:@|-u bob:@|--otp=@|--client-id=@|--token§=@|--@=1
"""


def test_only_what_is_harmless_by_its_form_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    secret = "S3CR3T9x"
    spelled = SPELLINGS.strip().replace("\n", "|").replace("@", secret).split("|")
    risky = [word.replace("§", " ") for words in spelled for word in words.split(" ")]
    plain = [
        "--lr",
        "1e-3",
        "--opt=AdamW",
        "--model",
        "RNN_TANH",
        "--data",
        "data",
        "--bf16",
        "x.depth=4",
        "cuda:0",
    ]
    command = ["train.py", *plain, *risky]
    RunWriter(tmp_path / "run.db", info={"command": command}).close()
    assert secret.encode() not in (tmp_path / "run.db").read_bytes()
    assert open_run(tmp_path / "run.db").info["command"][: len(plain) + 1] == ["train.py", *plain]
    kept = RunWriter(tmp_path / "all.db", info={"command": command}, record_arguments=True)
    kept.close()
    assert open_run(tmp_path / "all.db").info["command"] == command


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_a_run_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run.db") as writer:
        writer.flush()
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert set(modes.values()) == {0o600}, modes
    assert "run.db-wal" in modes


@pytest.mark.skipif(os.name == "nt", reason="Windows does not remove a file that is open")
@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_is_removed_is_told_at_once(tmp_path: Path, replaced: bool) -> None:
    with RunWriter(tmp_path / "run.db") as writer:
        ids = writer.add_tensors([TensorInfo("w", (3,))])
        writer.write_step(StepRecord(0), ids, [1.0], [1.0], [0], [0])
        assert writer.flush()
        (tmp_path / "run.db").unlink()
        if replaced:
            (tmp_path / "run.db").write_text("another's")
        writer.write_step(StepRecord(1), ids, [1.0], [1.0], [0], [0])
        with pytest.warns(RecordingWarning, match="removed or replaced the run file"):
            writer._pump.flush()
        assert not writer.recording
    assert (tmp_path / "run.db").exists() == replaced


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="this system does not list descriptors")
@pytest.mark.parametrize("at_once", [True, False])
def test_a_script_that_closes_all_files_gets_nothing_of_ours_into_its_next_ones(
    tmp_path: Path, at_once: bool
) -> None:
    writer = RunWriter(tmp_path / "run.db")
    ids = writer.add_tensors([TensorInfo("w", (3,))])
    writer.write_step(StepRecord(0), ids, [1.0], [1.0], [0], [0])
    assert writer.flush()
    assert writer._recorder.store is not None
    own = sorted(writer._recorder.store._descriptors.numbers())
    assert len(own) == 3  # of the file, its journal and its index
    for number in own:
        if at_once:
            os.closerange(number, number + 1)
        else:
            os.close(number)
    script = [(tmp_path / f"{place}.bin").open("w+b", buffering=0) for place in range(8)]
    writer.write_step(StepRecord(1), ids, [1.0], [1.0], [0], [0])
    with (
        contextlib.nullcontext()
        if at_once
        else pytest.warns(RecordingWarning, match="closed the run file")
    ):
        writer._pump.flush()
    writer.close()
    for file in script:
        assert file.read() == b""
        file.close()
    assert len(open_run(tmp_path / "run.db").steps) == 1 + at_once
