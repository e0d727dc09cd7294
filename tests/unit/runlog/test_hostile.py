"""Damaged and hostile run files: one sentence, or what is sound; never a traceback or a hang."""

from __future__ import annotations

import json
import os
import resource
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from steadygrad.cli import group
from steadygrad.errors import RunFileError, SteadyGradError
from steadygrad.recovery import RecoveryEvent
from steadygrad.runlog import RunWriter, StepRecord, TensorInfo, decoding, open_run, reader, schema
from steadygrad.runlog.encode import DamagedError, inflate, unpack, unpack_sparse
from steadygrad.runlog.newest import newest_run
from steadygrad.runlog.origin import Origin, Range
from steadygrad.vocabulary import FIGURES, RECOVERY

FLIPS = int(os.environ.get("STEADYGRAD_FUZZ", "0")) or 90
EVERY = 1 if "STEADYGRAD_FUZZ" in os.environ else 4
SEED = int(os.environ.get("STEADYGRAD_FUZZ_SEED", "0"))


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
        writer.write_event("gap", {"steps": 3, "first_step": 7, "last_step": 9}, 7)
        back = RecoveryEvent(40, "rollback", "loss spike", 30)
        writer.write_event(RECOVERY, back.as_json(), 40)
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
        lines = str(error).splitlines()
    else:
        return True
    assert len(lines) == 1, lines
    return False


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
        assert not set("\x1b\u202e") & set(result.output), (command, result.output)
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


def wrong_values(every: int = 1) -> dict[str, Callable[[Path], Path]]:
    """Damages by hand: name to a function that does one to a file.

    Args:
        every: of the wrong values of a field, take one in so many, each field others.
    """
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
            *(f"INSERT OR REPLACE INTO info VALUES ('{key}', ?)" for key in FACTS),
            "INSERT INTO info VALUES ('more', ?)",
        ),
        "shape": ("UPDATE tensors SET shape = ? WHERE id = 2",),
        "event": ("UPDATE events SET data = ? WHERE kind = 'script_clip'",),
        "origin": ("UPDATE events SET data = ? WHERE kind = 'nan_origin'",),
        "gap": (
            "UPDATE events SET data = json_set(data, '$.steps', json(?)) "
            "WHERE kind = 'gap' AND json_valid(?1)",
        ),
    }
    for field in ORIGIN_FIELDS:
        places[f"origin {field}"] = (
            f"UPDATE events SET data = json_set(data, '$.{field}', json(?)) "
            "WHERE kind = 'nan_origin' AND json_valid(?1)",
        )
    for field in ("act", "trigger", "to_step", "until", "nature", "optimizer"):
        places[f"recovery {field}"] = (
            f"UPDATE events SET data = json_set(data, '$.{field}', json(?)) "
            "WHERE kind = 'recovery' AND json_valid(?1)",
        )
    for field in CLIP_FIELDS:
        places[f"clip {field}"] = (
            f"UPDATE events SET data = json_set(data, '$.{field}', json(?)) "
            "WHERE kind = 'script_clip' AND json_valid(?1)",
        )
    damages: dict[str, Callable[[Path], Path]] = {}
    for number, (place, statements) in enumerate(places.items()):
        for name, value in list(wrong.items())[number % every :: every]:
            damages[f"{place}: {name}"] = _setter(statements, value)
    return damages | {name: _changer(*sql) for name, sql in TABLES.items()}


FACTS = (
    *("framework", "policy", "frozen", "clip_calls", "optimizers", "versions", "command", "exit"),
    *("loop", "lint", "models", "kernel", "device", "recording_stopped"),
    *("started", "ended", "overhead_seconds", "wall_seconds", "landmarks", "python", "platform"),
)
ORIGIN_FIELDS = ("step", "phase", "operation", "inputs", "rows", "line", "file", "tensors", "batch")
CLIP_FIELDS = ("optimizer", "step", "max_norm", "coef", "norm", "norm_type", "after_step", "passed")
ENDLESS = (
    "WITH RECURSIVE n(x) AS (SELECT 0 UNION ALL SELECT x + 1 FROM n) "
    "SELECT x AS first_row, 1 AS rows, x'00' AS data FROM n"
)
ESCAPE = "[bold]\x1b[2J\u202e<script>"
"""A terminal's command, a mark that turns the direction of reading, and two kinds of markup."""
TABLES = {
    "a view without end": ("DROP TABLE step_chunks", f"CREATE VIEW step_chunks AS {ENDLESS}"),
    "another table": ("DROP TABLE step_chunks", "CREATE TABLE step_chunks (first_row, rows, data)"),
    "a generated column": (
        "DROP TABLE info",
        "CREATE TABLE info (key TEXT, value TEXT AS (hex(zeroblob(100000000))))",
    ),
    "names that command a terminal": (
        f"UPDATE tensors SET name = '{ESCAPE}' || id, module = '{ESCAPE}'",
        f"UPDATE info SET value = '\"{ESCAPE}\"' WHERE key IN ('policy', 'framework')",
    ),
    "facts of the loop that do not fit": (
        "INSERT OR REPLACE INTO info VALUES ('loop', "
        """'{"logits": {}, "optimizers": [{"index": 0, "passes": "x"}], "loose": [{"names": 5}],"""
        """ "stale": [{"count": "9"}], "chains": [5, [[1]]]}')""",
        """INSERT OR REPLACE INTO info VALUES ('lint', '[5, {"line": {}}]')""",
        """INSERT OR REPLACE INTO info VALUES ('optimizers', '[5, {"class": 5, "lr": []}]')""",
    ),
    "no info": ("DROP TABLE info",),
    "huge rows": ("UPDATE step_chunks SET rows = 9000000000000000",),
    "a huge first row": ("UPDATE step_chunks SET first_row = first_row + 9000000000000000000",),
    "negative rows": ("UPDATE step_chunks SET rows = -1",),
    "rows as text": ("UPDATE step_chunks SET rows = 'x'",),
    "data as text": ("UPDATE step_chunks SET data = 'x'",),
    "no data": ("UPDATE step_chunks SET data = x''",),
    "data of zeros": ("UPDATE step_chunks SET data = zeroblob(5000)",),
    "a chunk less": ("DELETE FROM step_chunks WHERE first_row = 0",),
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

for _table in (words[2] for words in map(str.split, schema.TABLES) if words[1] == "TABLE"):
    _others = (
        f"DROP TABLE {_table}",
        f"CREATE TABLE {_table} (x)",
        f"INSERT INTO {_table} VALUES (1)",
    )
    TABLES |= {f"no table {_table}": _others[:1], f"another table {_table}": _others}


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


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make(tmp_path_factory.mktemp("sound") / "run.db").read_bytes()


def try_all(number: int, path: Path, folder: Path) -> bool:
    """Read by the library, and by one of the commands in turn."""
    sound = read_everything(path)
    run_commands(path, folder, [COMMANDS[number % len(COMMANDS)]])
    return sound


def test_the_file_that_is_damaged_below_is_sound(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "run.db").write_bytes(content)
    assert read_everything(tmp_path / "run.db")
    said = run_commands(tmp_path / "run.db", tmp_path)
    assert "SG101" in said[0]


@pytest.mark.parametrize("part", range(3))
def test_bits_that_turned_and_ends_that_are_missing(
    part: int, content: bytes, tmp_path: Path
) -> None:
    rng = np.random.default_rng([SEED, part])
    readable = 0
    for number in range(FLIPS // 3):
        damaged = flipped(content, rng)
        (tmp_path / "run.db").write_bytes(damaged)
        try:
            readable += try_all(number, tmp_path / "run.db", tmp_path)
        except BaseException:
            (tmp_path / "found.db").write_bytes(damaged)
            raise
    assert 0 < readable < FLIPS // 3  # some damages do no harm, not all


@pytest.mark.parametrize("part", range(4))
def test_values_of_other_types_and_sizes(part: int, content: bytes, tmp_path: Path) -> None:
    for number, (name, damage) in enumerate(list(wrong_values(EVERY).items())[part::4]):
        (tmp_path / "run.db").write_bytes(content)
        damage(tmp_path / "run.db")
        try:
            try_all(number, tmp_path / "run.db", tmp_path)
        except BaseException as error:
            raise AssertionError(f"the damage was: {name}") from error


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("DROP TABLE info", "table info is missing.*before the first step"),
        ("ALTER TABLE info ADD COLUMN more", "its table info is not as steadygrad makes it"),
        ("UPDATE step_chunks SET rows = 9000000000000000", "number 0 is not whole"),
        ("UPDATE step_chunks SET first_row = first_row + 7", "number 0 is not whole"),
        ("DELETE FROM tensors WHERE id = 3", "tensor 3 is missing"),
        ("UPDATE tensors SET shape = '[1' || hex(zeroblob(9000)) || ']'", "a number of 18001 d"),
        ("UPDATE layouts SET tensor_ids = x'ffffffffffffff7f'", "names some that are not there"),
        ("UPDATE step_columns SET name = 'norm'", "columns of steps"),
        (  # SQLite repeats the name, and Python cannot read what it says
            "UPDATE sqlite_schema SET name = CAST(x'ff' AS TEXT), sql = 'CREATE' WHERE name='info'",
            "cannot be read",
        ),
    ],
)
def test_the_sentence_says_what_is_wrong(
    statement: str, message: str, content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "run.db").write_bytes(content)
    altered(tmp_path / "run.db", statement)
    with pytest.raises(RunFileError, match=message):
        open_run(tmp_path / "run.db").tensor_norms.sum()


def test_a_view_in_the_place_of_a_table_is_never_asked(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "run.db").write_bytes(content)
    wrong_values()["a view without end"](tmp_path / "run.db")
    with pytest.raises(RunFileError, match="its table step_chunks is missing"):
        open_run(tmp_path / "run.db")


def test_a_query_that_works_for_too_long_is_stopped(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.db").write_bytes(content)
    monkeypatch.setattr(reader, "MOST_WORK", 1)
    monkeypatch.setattr(reader, "WORK", 20)
    with pytest.raises(RunFileError, match="interrupted"):
        open_run(tmp_path / "run.db")


def test_a_bomb_is_not_unpacked(content: bytes, tmp_path: Path) -> None:
    bomb = zlib.compress(bytes(300 << 20), 9)
    (tmp_path / "run.db").write_bytes(content)
    with sqlite3.connect(tmp_path / "run.db") as connection:
        connection.execute("UPDATE step_chunks SET data = ?", (bomb,))
        connection.execute("UPDATE figures SET norms = ?, nonfinite = ?", (bomb, bomb))
        connection.execute('UPDATE samples SET "values" = ?', (bomb,))
    connection.close()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run = open_run(tmp_path / "run.db")
    for read in (
        lambda: run.steps,
        lambda: run.tensor_norms,
        lambda: run.tensor_nonfinite,
        lambda: run.samples("weight_norm"),
    ):
        with pytest.raises(RunFileError, match="is damaged"):
            read()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_packed_columns_are_held_to_their_size() -> None:
    packed = zlib.compress(bytes(range(16)))
    assert inflate(packed, 16) == bytes(range(16))
    for wrong, size in [(packed, 15), (packed[:-2], 16), (b"", 16), (b"x", 16), ("x", 16)]:
        with pytest.raises(DamagedError):
            inflate(wrong, size)
    with pytest.raises(DamagedError, match="16 bytes in place of 32"):
        unpack(packed, np.int64, (4,))
    with pytest.raises(DamagedError):
        unpack_sparse(packed, np.zeros(3))


@pytest.mark.parametrize(
    "source",
    ["[" * 40 + "]" * 40, "[" * 100_000, "9" * 5000, "{", 5, None, b"1", " " * (9 << 20) + "1"],
)
def test_json_that_is_none_of_ours(source: Any) -> None:
    with pytest.raises(DamagedError):
        decoding.json_value(source, "a fact")


def test_json_keeps_what_is_sound() -> None:
    assert decoding.json_value('["\\ud800a", 1' + "0" * 300 + "]", "x") == ["?a", 1e300]
    facts = {"framework": 5, "seed": [1], "optimizers": [{"index": 1, "class": 7}], "frozen": "a"}
    assert decoding.info(facts) == {"seed": [1], "optimizers": [{"index": 1}]}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
def test_a_pipe_is_not_opened(suffix: str, content: bytes, tmp_path: Path) -> None:
    if suffix:
        (tmp_path / "run.db").write_bytes(content)
    os.mkfifo(tmp_path / f"run.db{suffix}")
    with pytest.raises(RunFileError, match=r"not a file at all|is no file"):
        open_run(tmp_path / "run.db")
    if not suffix:
        with pytest.raises(RunFileError, match="no run file in"):
            newest_run(tmp_path)
        with pytest.raises(RunFileError, match="not a run file"):
            RunWriter(tmp_path / "run.db", force=True)


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
def test_a_folder_in_the_place_of_a_journal(suffix: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "run.db").write_bytes(content)
    (tmp_path / f"run.db{suffix}").mkdir()
    with pytest.raises(RunFileError, match=f"run.db{suffix} beside it is no file"):
        open_run(tmp_path / "run.db")


@pytest.mark.parametrize("command", [c for c in COMMANDS if "-o" in c], ids=lambda c: c[0])
def test_a_place_that_cannot_be_written_is_told_in_a_sentence(
    command: tuple[str, ...], content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "run.db").write_bytes(content)
    said = run_commands(tmp_path / "run.db", tmp_path / "run.db", [command])  # a file, no folder
    assert "Error: " in said[0]


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", b"\xff\xfe.db"])
def test_names_that_cannot_be(name: Any, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(name)
    assert not read_everything(path)
    if "\0" not in str(path):  # no shell can pass that one
        assert all("Error" in text for text in run_commands(path, tmp_path))


def test_a_file_with_an_undecodable_name_is_read(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"run\xff.db")
    path.write_bytes(content)
    assert read_everything(path)
    run_commands(path, tmp_path)
