"""The loggers' own packages, offline: what was sent is read back from what they stored."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from steadygrad.errors import MissingExtraError
from steadygrad.runlog import Run
from steadygrad.runlog.items import Head
from steadygrad.sinks import export, open_sink
from steadygrad.sinks.loggers import tensorboard
from steadygrad.sinks.loggers.mlflow import metric_key

BROKEN = 7
Series = dict[str, list[tuple[int, float]]]


def check(series: Series) -> None:
    """The curves that every logger must show of the training in conftest.py."""
    assert [step for step, _ in series["grad_norm/total"]] == list(range(30))
    assert math.isnan(dict(series["grad_norm/total"])[BROKEN])
    assert math.isnan(dict(series["step/loss"])[BROKEN])
    assert dict(series["step/loss"])[0] == pytest.approx(1.0)
    assert dict(series["clip/coef"])[9] == pytest.approx(0.2)
    norms = dict(series["grad_norm/total"])
    assert dict(series["clip/norm"])[9] == pytest.approx(0.2 * norms[9])
    assert dict(series["clip/threshold"])[0] == pytest.approx(1.0)
    assert dict(series["clip/rate"])[9] == pytest.approx(0.1)
    assert dict(series["grad_nonfinite/total"])[BROKEN] == 3
    # tensors=10, and the broken step although it is not due
    assert [step for step, _ in series["grad_norm/fc.weight"]] == [0, BROKEN, 10, 20]
    assert dict(series["grad_norm/fc.weight"])[0] == pytest.approx(3.0, rel=0.002)
    assert math.isnan(dict(series["grad_norm/fc.weight"])[BROKEN])
    assert dict(series["grad_nonfinite/fc.bias"])[BROKEN] == 2
    assert dict(series["weight_norm/fc.bias"]) == {10: pytest.approx(8.0)}
    assert "clip/cosine" in series
    assert "step/loss_scale" in series


@pytest.fixture
def accumulator(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], object]:
    """TensorBoard's own reader, kept from importing TensorFlow, which takes seconds."""
    monkeypatch.setitem(sys.modules, "tensorboard.compat.notf", types.ModuleType("notf"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def load(folder: Path) -> object:
        return EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()

    return load


def tensorboard_series(events: object) -> Series:
    return {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


@pytest.mark.parametrize("way", ["live", "export"])
def test_tensorboard(
    way: str,
    live: Callable[..., Path],
    recorded: Run,
    tmp_path: Path,
    accumulator: Callable[[Path], object],
) -> None:
    if way == "live":
        live(f"tensorboard:{tmp_path}/logs")
    else:
        export(recorded, "tensorboard", tmp_path / "logs")
    events = accumulator(tmp_path / "logs")
    series = tensorboard_series(events)
    check(series)
    assert dict(series["grad_norm/fc.bias"])[BROKEN] == math.inf
    (first,) = events.Histograms("grad_norm/log10_over_tensors")
    assert (first.step, first.histogram_value.num) == (0, 2)
    assert first.histogram_value.max == pytest.approx(math.log10(4.0), abs=0.001)


def test_tensorboard_never_imports_tensorflow(tmp_path: Path) -> None:
    code = (
        "import sys; from steadygrad.runlog import Run; from steadygrad.sinks import export\n"
        f"export(Run.from_arrays(steps={{'norm': [1.0]}}), 'tensorboard', {str(tmp_path)!r})\n"
        "print('tensorflow' in sys.modules, 'tensorboard' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_tensorboard_histograms_come_on_schedule(tmp_path: Path) -> None:
    steps = {"norm": [1.0] * 250}
    run = Run.from_arrays(steps=steps, tensors=["a", "b"], tensor_norms=[[1.0, math.inf]] * 250)
    sink = open_sink(f"tensorboard:{tmp_path}/logs")
    shown: list[int] = []
    sink._histogram = lambda batch, row: shown.append(int(batch.steps["step"][row]))
    from steadygrad.sinks import replay

    replay(run, sink)
    assert shown == [0, 100, 200]
    assert tensorboard.HISTOGRAM_EVERY == 100


def wandb_records(path: Path) -> list[bytes]:
    """The records of an offline file: LevelDB's log format after a header of 7 bytes."""
    data, records, open_record = path.read_bytes(), [], b""
    assert data[:4] == b":W&B"
    place = 7
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        open_record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # full, last
            records.append(open_record)
            open_record = b""
    return records


def wandb_finished(path: Path) -> list[bytes]:
    """The records once the last of them is there: wandb's own process may lag behind."""
    from wandb.proto.wandb_internal_pb2 import Record

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        records = wandb_records(path)
        if records and Record.FromString(records[-1]).WhichOneof("record_type") == "exit":
            return records
        time.sleep(0.05)
    raise AssertionError(f"{path} was never finished")


def wandb_history(records: list[bytes]) -> list[dict[str, float]]:
    from wandb.proto.wandb_internal_pb2 import Record

    parsed = [Record.FromString(raw) for raw in records]
    return [
        {
            item.key or "/".join(item.nested_key): json.loads(item.value_json)
            for item in record.history.item
        }
        for record in parsed
        if record.WhichOneof("record_type") == "history"
    ]


def wandb_run(records: list[bytes]) -> object:
    from wandb.proto.wandb_internal_pb2 import Record

    parsed = (Record.FromString(raw) for raw in records)
    return next(r.run for r in parsed if r.WhichOneof("record_type") == "run")


def test_wandb_offline_beside_a_run_of_the_script(
    live: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    theirs = wandb.init(project="theirs", name="my-run", settings=wandb.Settings(silent=True))
    theirs.log({"accuracy": 0.1}, step=0)
    live("wandb:my-project")
    assert wandb.run is theirs
    theirs.log({"accuracy": 0.2}, step=1)
    theirs.finish()
    files = [wandb_finished(path) for path in tmp_path.glob("wandb/offline-run-*/*.wandb")]
    by_project = {wandb_run(records).project: records for records in files}
    assert wandb_run(by_project["my-project"]).run_group == "my-run"
    kept = wandb_history(by_project["theirs"])
    assert [row["accuracy"] for row in kept] == [0.1, 0.2]
    series: Series = {}
    for row in wandb_history(by_project["my-project"]):
        step = row.pop("optimizer_step")
        for name, value in row.items():
            if not name.startswith("_"):
                series.setdefault(name, []).append((step, float(value)))
    check(series)
    assert dict(series["grad_norm/fc.bias"])[BROKEN] == math.inf


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
def test_mlflow_in_sqlite(live: Callable[..., Path], tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    address = f"sqlite:///{tmp_path}/ml.db"
    client = MlflowClient(tracking_uri=address)
    client.search_experiments()  # creates the tables, which may take longer than an exit waits
    live(f"mlflow:{address}")
    experiment = client.get_experiment_by_name("steadygrad")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    series: Series = {
        name: sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, name))
        for name in run.data.metrics
    }
    check(series)
    assert dict(series["grad_norm/fc.bias"])[BROKEN] > 1e308  # MLflow's infinity


def test_mlflow_names_stay_within_what_it_takes() -> None:
    from mlflow.utils.validation import _validate_metric_name

    for name in ("grad_norm/a[0].b", "grad_norm/ü\n*?", "grad_norm/" + "x" * 900):
        _validate_metric_name(metric_key(name))


def test_trackio(live: Callable[..., Path], tmp_path: Path) -> None:
    code = (
        "import sys; from steadygrad.sinks import export\n"
        "export(sys.argv[1], 'trackio', 'my-project')\n"
        "import json; from trackio.sqlite_storage import SQLiteStorage as S\n"
        "(run,) = S.get_runs('my-project')\n"
        "print('LOGS', json.dumps(S.get_logs('my-project', run), default=str))\n"
    )
    environment = {"TRACKIO_DIR": str(tmp_path / "trackio"), "PATH": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, live()], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("LOGS ")]
    rows = json.loads(line.removeprefix("LOGS "))
    series: Series = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, (int, float)) or value in ("NaN", "Infinity"):
                series.setdefault(name, []).append((row["step"], float(value)))
    check(series)
    assert dict(series["grad_norm/fc.bias"])[BROKEN] == math.inf


@pytest.mark.parametrize(
    ("kind", "library"),
    [("tensorboard", "tensorboard.compat.proto"), ("wandb", "wandb"), ("mlflow", "mlflow"),
     ("trackio", "trackio")],
)  # fmt: skip
def test_a_missing_library_names_its_extra(
    kind: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [*(m for m in sys.modules if m.startswith(library)), library]:
        monkeypatch.setitem(sys.modules, module, None)
    head = Head(None, {}, (), lambda *_: None)
    with pytest.raises(MissingExtraError, match=rf'pip install "steadygrad\[{kind}\]"'):
        open_sink(kind).open(head)
