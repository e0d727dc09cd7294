"""Files: read back by the readers people use, with every value that is not finite."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from steadygrad.cli.export import command
from steadygrad.errors import RecordingWarning, UsageError
from steadygrad.runlog import STEP_DTYPE, Run, RunWriter, StepRecord, TensorInfo, open_run
from steadygrad.sinks import export, open_sink, record, replay

BROKEN = 7


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_holds_every_column_exactly(recorded: Run, tmp_path: Path) -> None:
    rows = read_csv(Path(export(recorded, "csv", tmp_path / "out.csv")))
    assert list(rows[0]) == list(STEP_DTYPE.names)
    for name in ("loss", "norm", "threshold", "coef", "lr", "time"):
        read = np.array([float(row[name]) for row in rows])
        np.testing.assert_array_equal(read, recorded.steps[name])
    assert [row["action"] for row in rows] == recorded.steps.action.tolist()
    assert rows[BROKEN]["norm"] == "nan"


def test_csv_with_tensors_shows_what_is_not_finite(recorded: Run, tmp_path: Path) -> None:
    rows = read_csv(Path(export(recorded, "csv", tmp_path / "out.csv", tensors=1)))
    assert rows[BROKEN]["grad_norm/fc.weight"] == "nan"
    assert rows[BROKEN]["grad_norm/fc.bias"] == "inf"
    assert float(rows[BROKEN]["grad_nonfinite/fc.bias"]) == 2
    assert float(rows[0]["grad_norm/fc.weight"]) == pytest.approx(3.0, rel=0.002)
    assert float(rows[0]["grad_zeros/fc.weight"]) == pytest.approx(0.5, abs=2e-5)


def strict_json(line: str) -> dict:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(line, parse_constant=refuse)


def test_jsonl_is_strict_json_and_names_what_is_not_finite(recorded: Run, tmp_path: Path) -> None:
    out = export(recorded, "jsonl", tmp_path / "out.jsonl", tensors=1)
    rows = [strict_json(line) for line in Path(out).read_text().splitlines()]
    assert len(rows) == 30
    assert rows[BROKEN]["norm"] == "NaN"
    assert rows[BROKEN]["tensors"]["fc.bias"]["norm"] == "Infinity"
    assert rows[BROKEN]["tensors"]["fc.bias"]["nonfinite"] == 2
    assert rows[9]["action"] == "clip"
    assert rows[0]["loss"] == recorded.steps.loss[0]


def test_jsonl_without_tensors_is_short(recorded: Run, tmp_path: Path) -> None:
    out = export(recorded, "jsonl", tmp_path / "out.jsonl")
    assert list(strict_json(Path(out).read_text().splitlines()[0])) == list(STEP_DTYPE.names)


def test_parquet_is_typed_and_exact(recorded: Run, tmp_path: Path) -> None:
    from pyarrow import parquet

    table = parquet.read_table(export(recorded, "parquet", tmp_path / "out.parquet", tensors=1))
    np.testing.assert_array_equal(table["norm"].to_numpy(), recorded.steps.norm)
    np.testing.assert_array_equal(table["step"].to_numpy(), recorded.steps.step)
    assert str(table.schema.field("step").type) == "int64"
    assert table["action"].to_pylist()[9] == "clip"
    np.testing.assert_array_equal(
        table["grad_norm/fc.bias"].to_numpy(), recorded.tensor_rows(slice(None), [1])[:, 0]
    )


def test_a_long_export_is_complete(tmp_path: Path) -> None:
    from pyarrow import parquet

    norms = np.random.default_rng(0).lognormal(size=10_000)
    run = Run.from_arrays(steps={"norm": norms})
    table = parquet.read_table(export(run, "parquet", tmp_path / "out.parquet"))
    np.testing.assert_array_equal(table["norm"].to_numpy(), norms)
    rows = read_csv(Path(export(run, "csv", tmp_path / "out.csv")))
    np.testing.assert_array_equal([float(row["norm"]) for row in rows], norms)


@pytest.mark.parametrize("to", ["csv", "jsonl", "parquet", "prometheus"])
def test_a_run_of_no_steps_exports(to: str, tmp_path: Path) -> None:
    RunWriter(tmp_path / "empty.db").close()
    assert Path(export(tmp_path / "empty.db", to)).exists()


def test_prometheus_text_is_read_by_its_own_parser(recorded: Run, tmp_path: Path) -> None:
    broken = Run.from_arrays(
        steps=recorded.steps[: BROKEN + 1],
        tensors=[TensorInfo('we"ird\\\n'), TensorInfo("b")],
        tensor_norms=recorded.tensor_norms[: BROKEN + 1],
        tensor_nonfinite=recorded.tensor_nonfinite[: BROKEN + 1],
    )
    text = Path(export(broken, "prometheus", tmp_path / "out.prom")).read_text()
    families = {family.name: family.samples for family in text_string_to_metric_families(text)}
    by_tensor = {s.labels["tensor"]: s.value for s in families["steadygrad_grad_norm"]}
    assert math.isnan(by_tensor['we"ird\\\n'])
    assert by_tensor["b"] == math.inf
    assert math.isnan(families["steadygrad_grad_norm_total"][0].value)
    assert families["steadygrad_clip_threshold"][0].value == 1.0
    assert families["steadygrad_step"][0].value == BROKEN


def test_prometheus_tells_optimizers_apart(tmp_path: Path) -> None:
    run = Run.from_arrays(steps={"norm": [1.0, 2.0], "optimizer": [0, 1]})
    text = Path(export(run, "prometheus", tmp_path / "out.prom")).read_text()
    assert "steadygrad_grad_norm_total 1.0\n" in text
    assert 'steadygrad_grad_norm_total{optimizer="1"} 2.0\n' in text
    list(text_string_to_metric_families(text))


def test_an_exported_run_can_be_ranked_by_its_stability(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run.db") as writer:
        for step in range(100):
            record_ = StepRecord(step, norm=50.0 if step == 80 else 1 + 0.1 * (step % 2))
            writer.write_step(record_, [], [], [], [], [])
    arguments = [str(tmp_path / "run.db"), "--to", "prometheus"]
    done = CliRunner().invoke(command, arguments)
    assert "steadygrad_run_unstable 0.01\n" in (tmp_path / "run.prom").read_text()
    assert done.stderr == "unstable steps: 1.00% of 100\n"


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_live_equals_export(kind: str, live: Callable[..., Path], tmp_path: Path) -> None:
    path = live(f"{kind}:{tmp_path}/live,tensors=1")
    exported = export(path, kind, tmp_path / "exported", tensors=1)
    reader = READERS[kind]
    first, second = reader(tmp_path / "live"), reader(Path(exported))
    assert len(first) == len(second) == 30
    for one, other in zip(first, second, strict=True):
        assert_alike(one, other)


def assert_alike(one: object, other: object) -> None:
    """Equal, floats within what the run file keeps of a tensor's figures."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for name in one:
            assert_alike(one[name], other[name])
    elif isinstance(one, float):
        np.testing.assert_allclose(one, other, rtol=0.002, atol=2e-5)
    elif one != other:
        np.testing.assert_allclose(float(one), float(other), rtol=0.002, atol=2e-5)


def _lines(path: Path) -> list[dict]:
    return [strict_json(line) for line in path.read_text().splitlines()]


def _table(path: Path) -> list[dict]:
    from pyarrow import parquet

    return parquet.read_table(path).to_pylist()


READERS = {"csv": read_csv, "jsonl": _lines, "parquet": _table}


def test_tensors_that_come_later_begin_a_second_part(tmp_path: Path) -> None:
    with record(tmp_path / "run.db", f"csv:{tmp_path}/a.csv,tensors=1") as out:
        ids = out.add_tensors([TensorInfo("a")])
        out.write_step(StepRecord(0), ids, [1.0], [1.0], [0], [0])
        out.flush()
        ids += out.add_tensors([TensorInfo("b")])
        out.write_step(StepRecord(1), ids, [1.0, 2.0], [1.0, 2.0], [0, 0], [0, 0])
    assert [row["step"] for row in read_csv(tmp_path / "a.csv")] == ["0"]
    (second,) = read_csv(tmp_path / "a-2.csv")
    assert second["grad_norm/b"] == "2.0"


def test_a_schedule_leaves_the_other_steps_blank(recorded: Run, tmp_path: Path) -> None:
    rows = read_csv(Path(export(recorded, "csv", tmp_path / "out.csv", tensors=10)))
    known = [int(row["step"]) for row in rows if row["grad_nonfinite/fc.bias"] != "nan"]
    assert known == [0, 10, 20]


def test_tensors_of_one_name_are_numbered(tmp_path: Path) -> None:
    run = Run.from_arrays(steps={"norm": [1.0]}, tensors=["w", "w"], tensor_norms=[[1.0, 2.0]])
    (row,) = read_csv(Path(export(run, "csv", tmp_path / "out.csv", tensors=1)))
    assert (row["grad_norm/w"], row["grad_norm/w#2"]) == ("1.0", "2.0")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_nothing_is_overwritten(kind: str, recorded: Run, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    with pytest.raises(UsageError, match="exists already"):
        export(recorded, kind, tmp_path / "precious")
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_live_file_that_cannot_be_made_costs_a_warning(
    live: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "taken.csv").write_text("")
    with pytest.warns(RecordingWarning, match="csv:.*exists already"):
        path = live(f"csv:{tmp_path}/taken.csv")
    assert len(open_run(path)) == 30


def test_the_command(recorded: Run, tmp_path: Path) -> None:
    done = CliRunner().invoke(command, [str(recorded.path), "--to", "csv", "--tensors"])
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(tmp_path / "recorded.csv")
    assert "grad_norm/fc.weight" in (tmp_path / "recorded.csv").read_text()


def test_the_command_offers_every_sink_but_alerts() -> None:
    (option,) = [p for p in command.params if p.name == "to"]
    from steadygrad.sinks import kinds

    assert list(option.type.choices) == [kind for kind in kinds() if kind != "alerts"]


def test_a_missing_library_names_its_extra(
    recorded: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r'pip install "steadygrad\[parquet\]"'):
        replay(recorded, open_sink(f"parquet:{tmp_path}/out.parquet"))
    assert not (tmp_path / "out.parquet").exists()
