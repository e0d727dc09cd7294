"""No logger can hurt a training: not one that raises, hangs, or is slower than the steps."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from steadygrad.errors import RecordingWarning, UsageError
from steadygrad.runlog import Event, RunWriter, StepRecord, TensorInfo, open_run
from steadygrad.runlog.items import Head
from steadygrad.sinks import (
    Batch,
    Sample,
    Sink,
    base,
    kinds,
    listeners,
    loggers,
    open_sink,
    record,
    replay,
)


class Keep(Sink):
    """Keeps what it is given; can be told to fail or to hang."""

    kind = "keep"

    def __init__(self) -> None:
        super().__init__()
        self.heads: list[Head] = []
        self.batches: list[Batch] = []
        self.samples: list[Sample] = []
        self.events: list[Event] = []
        self.closed = 0
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None

    def open(self, head: Head) -> None:
        self.heads.append(head)

    def write(self, batch: Batch) -> None:
        self.gate.wait(30)
        if self.error:
            raise self.error
        self.batches.append(batch)

    def sample(self, sample: Sample) -> None:
        self.samples.append(sample)

    def event(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None:
        self.closed += 1

    @property
    def steps(self) -> list[int]:
        return [int(step) for batch in self.batches for step in batch.steps.step]


def take_steps(out: RunWriter, count: int, start: int = 0) -> None:
    for step in range(start, start + count):
        out.write_step(StepRecord(step, norm=1.0), [], [], [], [], [])


def test_a_sink_hears_everything_in_order(live: Callable[..., Path]) -> None:
    sink = Keep()
    live(sink)
    assert sink.steps == list(range(30))
    assert sink.closed == 1
    assert sink.heads[0].path.name == "live.db"
    assert sink.samples == [Sample("weight_norm", 10, (("fc.weight", 7.0), ("fc.bias", 8.0)))]
    first = sink.batches[0]
    assert first.names == ("fc.weight", "fc.bias")
    np.testing.assert_array_equal(first.norms[:2], [[3.0, 4.0]] * 2)
    np.testing.assert_array_equal(first.zeros[0], [0.5, 0.0])


def test_replay_gives_what_live_gave(live: Callable[..., Path]) -> None:
    heard, replayed = Keep(), Keep()
    run = open_run(live(heard))
    replay(run, replayed)
    assert replayed.steps == heard.steps
    assert replayed.samples == heard.samples
    for name in ("norms", "max_abs", "nonfinite", "zeros"):
        both = [np.concatenate([getattr(b, name) for b in s.batches]) for s in (heard, replayed)]
        np.testing.assert_allclose(both[1], both[0], rtol=0.002, atol=2e-5)
    assert replayed.closed == 1


def test_replay_splits_where_the_tensors_change(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run.db") as out:
        first = out.add_tensors([TensorInfo("a"), TensorInfo("b")])
        other = out.add_tensors([TensorInfo("c", optimizer=1)])
        for step in range(3):
            out.write_step(StepRecord(step), first, [1, 2], [1, 2], [0, 0], [0, 0])
            out.write_step(StepRecord(step, optimizer=1), other, [3], [3], [0], [0])
    sink = Keep()
    replay(tmp_path / "run.db", sink)
    assert [batch.names for batch in sink.batches] == [("a", "b"), ("c",)] * 3
    np.testing.assert_allclose(sink.batches[1].norms, [[3.0]], rtol=0.002)


def test_a_sink_that_is_added_later_hears_the_rest(tmp_path: Path) -> None:
    sink = Keep()
    with RunWriter(tmp_path / "run.db") as out:
        ids = out.add_tensors([TensorInfo("a", (4,))])
        out.write_step(StepRecord(0), ids, [1.0], [1.0], [0], [0])
        out.add_sink(sink)
        out.write_step(StepRecord(1), ids, [2.0], [1.0], [0], [4])
        out.write_event("script_clip", {"max_norm": 1.0}, 1)
    assert sink.steps == [1]
    assert sink.batches[0].names == ("a",)
    assert sink.batches[0].zeros.tolist() == [[1.0]]
    assert [(event.kind, event.step) for event in sink.events] == [("script_clip", 1)]
    assert [tensor.name for tensor in sink.heads[0].tensors] == ["a"]


def test_a_sink_that_raises_costs_one_warning(tmp_path: Path) -> None:
    bad, good = Keep(), Keep()
    bad.error = RuntimeError("no network")
    out = record(tmp_path / "run.db", bad, good)
    with pytest.warns(RecordingWarning, match="sending to keep stopped: no network") as caught:  # noqa: PT031
        for part in range(3):
            take_steps(out, 10, 10 * part)
            out.flush()
        out.close()
    assert len(caught) == 1
    assert bad.closed == 0
    assert good.steps == list(range(30))
    assert len(open_run(tmp_path / "run.db")) == 30


def test_a_sink_that_hangs_neither_stops_the_training_nor_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "HANG_SECONDS", 0.3)  # of the 20 s that a sink at work has
    monkeypatch.setattr(base, "QUEUE_BYTES", 50_000)
    sink = Keep()
    sink.gate.clear()
    out = record(tmp_path / "run.db", sink)
    with pytest.warns(RecordingWarning, match=r"keep did not finish within \d s") as caught:  # noqa: PT031
        take_steps(out, 3000)
        assert out.flush()  # the file is not behind
        assert len(open_run(tmp_path / "run.db")) == 3000
        assert len(sink._pump._queue) < 100  # nor does memory grow
        out.close()
    assert len(caught) == 1
    assert "ended" in open_run(tmp_path / "run.db").info
    sink.gate.set()
    sink._pump._thread.end(10)


def test_a_sink_that_was_too_slow_says_how_much_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "QUEUE_BYTES", 50_000)
    sink = Keep()
    sink.gate.clear()
    out = record(tmp_path / "run.db", sink)
    with pytest.warns(RecordingWarning, match=r"keep was too slow: \d+ records"):  # noqa: PT031
        take_steps(out, 1000)
        out.flush()
        sink.gate.set()
        out.close()
    assert 0 < len(sink.steps) < 1000
    assert sink.closed == 1
    assert len(sink.steps) + sink._lost == 1000


def test_sinks_go_on_when_the_disk_is_full(tmp_path: Path) -> None:
    sink = Keep()
    out = record(tmp_path / "run.db", sink)
    out.flush()
    out._recorder.store._connection.execute("PRAGMA max_page_count = 1")
    with pytest.warns(RecordingWarning, match="full"):  # noqa: PT031
        for part in range(3):
            take_steps(out, 2000, 2000 * part)
            out.flush()
        out.close()
    assert sink.steps == list(range(6000))


def test_every_kind_can_be_named() -> None:
    rooms = (loggers, listeners)
    files = {path.stem for room in rooms for path in Path(room.__path__[0]).glob("[a-z]*.py")}
    assert kinds() == sorted(files)
    assert {"alerts", "csv", "mlflow", "tensorboard", "wandb"} <= files


@pytest.mark.parametrize("kind", kinds())
def test_every_sink_takes_the_same_options(kind: str) -> None:
    target = "https://hooks.example.com/x" if kind == "alerts" else "some where"
    sink = open_sink(f"{kind}:{target},tensors=3")
    shown = "" if kind == "alerts" else target  # an address is a secret
    assert (sink.kind, sink.target, sink.tensors) == (kind, shown, 3)
    assert kind == "alerts" or str(sink) == f"{kind}:{target}"
    assert "hooks" not in str(sink)  # an address is a secret
    assert str(open_sink(kind)) == kind
    assert open_sink(sink) is sink


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tensorbord:logs", "no sink 'tensorbord': choose one of alerts, csv"),
        ("base", "no sink 'base'"),
        ("csv:a.csv,tensors=x", r"tensors= takes a number of steps.*'x'"),
    ],
)
def test_a_spec_that_cannot_be_read(spec: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        record(tmp_path / "run.db", spec)
    assert not (tmp_path / "run.db").exists()


def test_a_negative_schedule_is_refused() -> None:
    with pytest.raises(UsageError, match=r"0 \(never\) or more"):
        base.Sink.__init__(Keep(), tensors=-1)


def test_unmeasured_is_told_from_broken() -> None:
    nan = math.nan
    batch = Batch(
        np.zeros(1).view(np.recarray), ("a", "b"), *(np.array([[nan, nan]]),) * 2,
        np.array([[3.0, nan]]), np.array([[nan, nan]]),
    )  # fmt: skip
    assert batch.measured.tolist() == [[True, False]]


ENDS = """
import atexit, sys
from steadygrad.runlog import StepRecord
from steadygrad.sinks import Sink, record

class Library(Sink):
    kind, alive, seen = "library", True, 0

    def open(self, head):
        atexit.register(self.end)  # as wandb does

    def end(self):
        self.alive = False

    def write(self, batch):
        self.seen += len(batch.steps)

    def close(self):
        print("closed", "alive" if self.alive else "gone", self.seen)

run = record(sys.argv[1], Library())
run.flush()
for step in range(50):
    run.write_step(StepRecord(step), [], [], [], [], [])
run._recorder._taps[0]._pump.flush()
"""


def test_at_exit_a_sink_is_closed_before_its_library(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ENDS, str(tmp_path / "run.db")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.stderr) == ("closed alive 50\n", "")
    assert "ended" in open_run(tmp_path / "run.db").info
