"""Run files as they must not be, and every way in which one is read."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner

from steadygrad.cli import group
from steadygrad.errors import SteadyGradError
from steadygrad.runlog import RunWriter, StepRecord, TensorInfo, open_run
from steadygrad.runlog.origin import Origin, Range
from steadygrad.runlog.run import FIGURES

COMMANDS = (
    ("diagnose", "{run}"),
    ("diagnose", "{run}", "--json"),
    ("calibrate", "{run}"),
    ("report", "{run}", "-o", "{folder}/report.html", "--force"),
    ("report", "{run}", "--terminal"),
    ("report", "{run}", "--json"),
    ("watch", "{run}", "--once"),
    ("export", "{run}", "--to", "jsonl", "--tensors", "-o", "{folder}/steps.jsonl"),
)


def make(path: Path, steps: int = 120) -> Path:
    """A small run file in which every table and every kind of field is used."""
    rng = np.random.default_rng(0)
    facts = {"framework": "torch", "policy": "norm:1.0", "frozen": ["a"], "clip_calls": []}
    with RunWriter(path, info=facts) as writer:
        writer.update_info(optimizers=[{"index": 0, "class": "SGD"}], versions={"torch": "2"})
        tensors = [TensorInfo(f"layer{i}.weight", (4, 4), "float32", "Linear", i) for i in range(6)]
        ids = np.array(writer.add_tensors(tensors))
        for step in range(steps):
            norms = np.exp(0.1 * rng.standard_normal(6))
            bad = int(step == steps - 5)
            total = float("nan") if bad else float(np.sqrt((norms**2).sum()))
            record = StepRecord(
                step, loss=2 - step / steps, norm=total, nonfinite=bad, threshold=1.0, coef=0.5
            )
            there = ids[: 6 - step % 2]
            few = norms[: len(there)]
            writer.write_step(record, there, few * 1e-50**bad, few, few * 0 + bad, few * 0)
            if step % 16 == 0:
                writer.write_sample("weight_norm", step, ids, norms)
        clip = {"optimizer": 0, "max_norm": "inf", "coef": 0.5, "norm": 2.0, "after_step": False}
        writer.write_event("script_clip", clip, 3)
        origin = Origin(steps - 5, "loss", "log", inputs=(Range("input 0", (2,), "float32", 0, 1),))
        writer.write_event("nan_origin", origin.as_json(), steps - 5)
    return path


def read_everything(path: Path) -> bool:
    """Read all that there is by the library; whether it could be read.

    Any error but one of ours passes through: that is what the tests look for.
    """
    try:
        run = open_run(path)
        for figure in FIGURES:
            run.tensor_rows(slice(None), figure=figure)
        for name in run.sample_names:
            run.samples(name)
        assert len(run.steps) == len(run)
    except SteadyGradError as error:
        assert "\n" not in str(error), error
        return False
    return True


def run_commands(path: Path, folder: Path, commands: Any = COMMANDS) -> list[str]:
    """Have every command read a file, and give back what they printed.

    Any traceback fails, and so does an error that is not a sentence.
    """
    said = []
    for command in commands:
        for old in folder.glob("steps*.jsonl"):
            old.unlink()
        words = [word.format(run=path, folder=folder) for word in command]
        result = CliRunner().invoke(group, words)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code in (0, 1, 2), (command, result.output)
        said.append(result.output)
    return said


def altered(path: Path, *statements: str) -> Path:
    """The file after some SQL, foreign keys and checks aside."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA writable_schema = ON")
    for statement in statements:
        connection.execute(statement)
    connection.close()
    return path


def flipped(content: bytes, rng: np.random.Generator) -> bytes:
    """A file with a bit turned, a stretch overwritten, or its end cut off."""
    damaged = bytearray(content)
    way = rng.integers(4)
    if way == 0:
        return bytes(damaged[: rng.integers(1, len(damaged))])
    if way == 1:
        first = int(rng.integers(100, len(damaged)))
        length = int(rng.integers(1, 200))
        damaged[first : first + length] = rng.bytes(len(damaged[first : first + length]))
        return bytes(damaged)
    for place in rng.integers(100, len(damaged), 1 if way == 2 else 20):
        damaged[place] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def wrong_values() -> dict[str, Callable[[Path], Path]]:
    """Damages by hand: name to a function that does one to a file."""
    deep = json.dumps("[" * 3 + "]" * 3)[1:-1].replace("[[[", "[" * 5000).replace("]]]", "]" * 5000)
    wrong = {
        "number": "17",
        "text": json.dumps("x"),
        "list": "[1]",
        "object": '{"a": {"b": 1}}',
        "null": "null",
        "deep": deep,
        "digits": "9" * 5000,
        "big": "9" * 300,
        "surrogate": '"\\ud800 \\udfff"',
        "no json": "{",
        "nan": "NaN",
        "empty": "",
    }
    places: dict[str, tuple[str, ...]] = {
        "info": (
            *(f"UPDATE info SET value = ? WHERE key = '{key}'" for key in FACTS),
            "INSERT INTO info VALUES ('more', ?)",
        ),
        "shape": ("UPDATE tensors SET shape = ? WHERE id = 2",),
        "event": ("UPDATE events SET data = ? WHERE kind = 'script_clip'",),
        "origin": ("UPDATE events SET data = ? WHERE kind = 'nan_origin'",),
    }
    for field in ORIGIN_FIELDS:
        places[f"origin {field}"] = (
            f"UPDATE events SET data = json_set(data, '$.{field}', json(?)) "
            "WHERE kind = 'nan_origin' AND json_valid(?1)",
        )
    for field in CLIP_FIELDS:
        places[f"clip {field}"] = (
            f"UPDATE events SET data = json_set(data, '$.{field}', json(?)) "
            "WHERE kind = 'script_clip' AND json_valid(?1)",
        )
    damages: dict[str, Callable[[Path], Path]] = {}
    for place, statements in places.items():
        for name, value in wrong.items():
            damages[f"{place}: {name}"] = _setter(statements, value)
    return damages | {name: _changer(*sql) for name, sql in TABLES.items()}


FACTS = (
    *("framework", "policy", "frozen", "clip_calls", "optimizers", "versions", "command", "exit"),
    *("started", "ended", "overhead_seconds", "wall_seconds", "landmarks", "python", "platform"),
)
ORIGIN_FIELDS = ("step", "phase", "operation", "inputs", "rows", "line", "file", "tensors", "batch")
CLIP_FIELDS = ("optimizer", "step", "max_norm", "coef", "norm", "norm_type", "after_step", "passed")
ENDLESS = (
    "WITH RECURSIVE n(x) AS (SELECT 0 UNION ALL SELECT x + 1 FROM n) "
    "SELECT x AS first_row, 1 AS rows, x'00' AS data FROM n"
)
TABLES = {
    "a view without end": ("DROP TABLE steps", f"CREATE VIEW steps AS {ENDLESS}"),
    "another table": ("DROP TABLE steps", "CREATE TABLE steps (first_row, rows, data)"),
    "a generated column": (
        "DROP TABLE info",
        "CREATE TABLE info (key TEXT, value TEXT AS (hex(zeroblob(100000000))))",
    ),
    "no info": ("DROP TABLE info",),
    "huge rows": ("UPDATE steps SET rows = 9000000000000000",),
    "a huge first row": ("UPDATE steps SET first_row = first_row + 9000000000000000000",),
    "negative rows": ("UPDATE steps SET rows = -1",),
    "rows as text": ("UPDATE steps SET rows = 'x'",),
    "data as text": ("UPDATE steps SET data = 'x'",),
    "no data": ("UPDATE steps SET data = x''",),
    "data of zeros": ("UPDATE steps SET data = zeroblob(5000)",),
    "a chunk less": ("DELETE FROM steps WHERE first_row = 0",),
    "columns twice": ("UPDATE step_columns SET name = 'norm'",),
    "columns as bytes": ("UPDATE step_columns SET name = x'ff'",),
    "no columns": ("DELETE FROM step_columns",),
    "no layouts": ("DELETE FROM layouts",),
    "a cut layout": ("UPDATE layouts SET tensor_ids = substr(tensor_ids, 1, 11)",),
    "a layout of others": ("UPDATE layouts SET tensor_ids = x'ffffffffffffff7f'",),
    "a layout of text": ("UPDATE layouts SET tensor_ids = 'abcdefgh'",),
    "an odd layout": ("UPDATE layouts SET id = 9223372036854775807 WHERE id = 1",),
    "figures of more rows": ("UPDATE figures SET rows = rows + 1",),
    "figures of huge rows": ("UPDATE figures SET rows = 4000000000",),
    "figures of a text": ("UPDATE figures SET norms = 'abc'",),
    "no zeros": ("UPDATE figures SET zeros = x''",),
    "offsets of others": ("UPDATE figures SET offsets = norms",),
    "exact values of others": ("UPDATE figures SET exact_norms = norms, nonfinite = offsets",),
    "a tensor less": ("DELETE FROM tensors WHERE id = 3",),
    "no tensors": ("DELETE FROM tensors",),
    "tensors as bytes": ("UPDATE tensors SET name = x'fffe'",),
    "positions as text": ("UPDATE tensors SET position = 'x'",),
    "tensors of other optimizers": ("UPDATE tensors SET optimizer = 9223372036854775807",),
    "samples as text": ("UPDATE samples SET \"values\" = 'x'",),
    "samples of a step of text": ("UPDATE samples SET step = 'x'",),
    "samples of no layout": ("UPDATE samples SET layout = -5",),
    "samples named in bytes": ("UPDATE samples SET name = x'ff00'",),
    "events of text": ("UPDATE events SET step = 'x', time = 'y'",),
    "events in bytes": ("UPDATE events SET kind = x'ff', data = x'ff'",),
    "events far away": ("UPDATE events SET step = -9223372036854775808, time = 1e308",),
}


def _setter(statements: tuple[str, ...], value: str) -> Callable[[Path], Path]:
    def change(path: Path) -> Path:
        connection = sqlite3.connect(path, isolation_level=None)
        for statement in statements:
            connection.execute(statement, (value,))
        connection.close()
        return path

    return change


def _changer(*statements: str) -> Callable[[Path], Path]:
    return lambda path: altered(path, *statements)
