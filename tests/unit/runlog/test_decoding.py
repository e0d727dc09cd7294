"""Whatever a field of a run file holds: a value of its own kind, or `DamagedError`.

Hypothesis makes the fields; what it and a guided fuzzer (`python tools/guided_fuzz.py`) have found
is kept in the folder `finds`.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from steadygrad import calibrate, diagnose, vocabulary
from steadygrad.recovery import RecoveryEvent
from steadygrad.runlog import Run, decoding, encode
from steadygrad.runlog.encode import DamagedError
from steadygrad.runlog.info import LoopFacts, RunInfo
from steadygrad.runlog.origin import Origin, Range
from steadygrad.runlog.records import STEP_DTYPE, TensorInfo
from steadygrad.vocabulary import (
    ALERT,
    GAP,
    LADDER,
    NAN_LOSS,
    NAN_ORIGIN,
    RANKS,
    RECOVERY,
    SCRIPT_CLIP,
    THROUGH_TIME,
)

FINDS = Path(__file__).with_name("finds")
FUZZ = int(os.environ.get("STEADYGRAD_FUZZ", "0"))


def examples(count: int) -> settings:
    """So many examples, always the same ones; under `make fuzz` more, each time others.

    Only there a failing one is made smaller, which takes minutes.
    """
    smaller = [Phase.shrink] if FUZZ else []
    return settings(
        max_examples=FUZZ or count,
        phases=[Phase.explicit, Phase.generate, *smaller],
        derandomize=not FUZZ,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


GROUP = {"names": ["fc.weight"], "count": 1, "elements": 4, "container": "list", "index": 0}
WORDS = ("steadygrad", "python", "platform", "stopped_by", "kernel", "backend", "device", "process")
INFO: dict[str, Any] = dict.fromkeys((*WORDS, "observed_by", "sampling_ended"), "x") | {
    "framework": "torch",
    "policy": "norm:1.0",
    "on_nonfinite": "skip",
    "script": "train.py",
    "command": ["train.py", "--lr", "0.1"],
    "exit": "ok",
    "started": 1.7e9,
    "ended": 1.7e9,
    "wall_seconds": 3.0,
    "overhead_seconds": 0.1,
    "rank": 0,
    "ranks": 2,
    "restart": 1,
    "ranks_ended": ["ok", "ValueError"],
    "seed": 2**62,
    "threads": 2,
    "amp": True,
    "frozen": [1],
    "versions": {"torch": "2.13.0"},
    "results": {"accuracy": 0.5},
    "optimizers": [{"index": 0, "class": "SGD", "lr": 0.1}],
    "models": ["Net"],
    "clip_calls": [{"optimizer": 0, "count": 9, "first_step": 0, "last_step": 9, "after_step": 1}],
    "loop": {
        "optimizers": [{"index": 0, "judged": 8, "held": 8, "emptied": 8, "passes": 8}],
        "loose": [GROUP],
        "stale": [GROUP],
        "logits": {"loss": "cross_entropy", "before": "softmax"},
        "targets": {"loss": "cross_entropy", "lowest": -1.0, "highest": 2.0},
        "sizes": {"loss": "mse_loss", "targets": 500.0, "spread": 2.0, "outputs": 1.0},
        "broadcast": [8, 1],
        "criterion": "cross_entropy",
        "chains": [["fc.weight", "fc2.weight"]],
        "summed": 1,
    },
    "lint": [{"path": "train.py", "line": 3, "id": "SG601"}],
    "recording_stopped": {"recorded": 4, "steps": 9, "reason": "disk full"},
    "landmarks": {"largest_norm": 3},
    "troubles": ["x"],
}
CLIP = {"optimizer": 0, "max_norm": 1.0, "norm_type": "inf", "norm": 2.0, "coef": 0.5}
COUNTS = {"params": 1, "backward_since_step": 0, "backward_since_clip": 1, "after_step": True}
TWO = [0.5, 1.5]
EVENTS: dict[str, dict[str, Any]] = {
    SCRIPT_CLIP: CLIP | COUNTS,
    NAN_LOSS: {"optimizer": 0, "step": 5},
    GAP: {"steps": 3, "first_step": 7, "last_step": 9},
    RANKS: dict.fromkeys(decoding.RANK_COLUMNS, TWO) | {"rank": [0, 1], "step": [5, 5]},
    THROUGH_TIME: {"tensor": 0, "length": 2, "positions": [0, 1], "norms": TWO},
    RECOVERY: RecoveryEvent(9, "rollback", "loss spike", 4, 12, "persistent").as_json(),
    LADDER: {"ladder": "auto", "folder": "snapshots", "optimizer": 0},
    ALERT: {"id": "SG101", "severity": "error", "title": "x"},
    NAN_ORIGIN: Origin(
        5,
        "loss",
        "log",
        file="a.py",
        line=3,
        inputs=(Range("x", (2,), "float32", 0, 1),),
        rows=(1,),
    ).as_json(),
}
"""Sound facts and events, one of each kind; below, parts of them become something else."""

EDGES = [2**63 - 1, -(2**63), 2**70, 1e308, -1.0, math.nan, math.inf, "inf", "\ud800", "", True]
leaves = st.one_of(
    st.none(), st.sampled_from(EDGES), st.integers(), st.floats(), st.text(max_size=5)
)
anything = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["index", "names", "a", "loss"]), inner, max_size=3),
    ),
    max_leaves=6,
)


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each part of a JSON value, itself included."""
    yield way
    for key, part in value.items() if isinstance(value, dict) else ():
        yield from places(part, (*way, key))
    for key, part in enumerate(value) if isinstance(value, list) else ():
        yield from places(part, (*way, key))


def replaced(value: Any, way: tuple[Any, ...], by: Any) -> Any:
    """The value with another part at the end of the way."""
    if not way:
        return by
    copied = dict(value) if isinstance(value, dict) else list(value)
    copied[way[0]] = replaced(value[way[0]], way[1:], by)
    return copied


@st.composite
def spoilt(draw: st.DrawFn, value: Any, most: int = 3) -> Any:
    """A sound JSON value of which up to so many parts are something else."""
    for _ in range(draw(st.integers(1, most))):
        ways = list(places(value))
        value = replaced(value, draw(st.sampled_from(ways[1:] or ways)), draw(anything))
    return value


def through_json(value: Any) -> Any:
    """What a reader makes of a value that stands in a file; None where it is refused."""
    try:
        return decoding.json_value(json.dumps(value), "a fact")
    except DamagedError:
        return None


def part_at(value: Any, way: tuple[Any, ...]) -> Any:
    for key in way:
        value = value[key]
    return value


def assert_plain(value: Any) -> None:
    """Not deep, no number that int64 does not hold, no halves of characters."""
    for way in places(value):
        assert len(way) <= decoding.MOST_DEPTH
        part = part_at(value, way)
        assert not isinstance(part, int) or abs(part) < decoding.INT64
    json.dumps(value, ensure_ascii=False).encode()


@examples(100)
@given(st.one_of(anything.map(json.dumps), st.text(max_size=30), st.binary(max_size=9), leaves))
def test_json_of_any_kind_is_a_bounded_value_or_refused(source: Any) -> None:
    try:
        value = decoding.json_value(source, "a fact")
    except DamagedError:
        return
    assert_plain(value)


@examples(100)
@given(spoilt(INFO))
def test_facts_keep_what_is_sound_and_are_the_same_when_read_again(rows: Any) -> None:
    facts = through_json(rows)
    sound = decoding.info(facts)
    assert repr(decoding.info(sound)) == repr(sound)  # NaN is not equal to itself
    assert sound.keys() <= facts.keys()
    same = [key for key in INFO if repr(facts.get(key)) == repr(INFO[key])]  # 0.0 is not 0
    assert {key: dict(sound)[key] for key in same} == {key: INFO[key] for key in same}


def test_each_field_and_each_kind_of_event_has_a_sound_one_here() -> None:
    assert RunInfo.__annotations__.keys() == INFO.keys()
    assert LoopFacts.__annotations__.keys() == INFO["loop"].keys()
    kinds = {
        value for name, value in vars(vocabulary).items() if type(value) is str and name.isupper()
    }
    assert kinds == EVENTS.keys()


def test_sound_facts_and_events_come_back_whole() -> None:
    assert decoding.info(INFO) == INFO
    for kind, data in EVENTS.items():
        event = decoding.event((5, 1.0, kind, json.dumps(data)))
        assert event is not None
        assert through_json(event.data).keys() == data.keys(), kind


cells = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(max_size=5))


@examples(100)
@given(st.tuples(*[st.one_of(cells, st.binary(max_size=5), anything.map(json.dumps))] * 6))
@example(("w", "[-1]", "float32", "", 0, 0))
def test_rows_of_tables_are_typed_or_refused(row: tuple[Any, ...]) -> None:
    try:
        tensor = decoding.tensor(row)
    except DamagedError:
        pass
    else:
        assert all(type(length) is int and length >= 0 for length in tensor.shape)
        assert type(tensor.position) is type(tensor.optimizer) is int
        "".join((tensor.name, tensor.dtype, tensor.module)).encode()
    try:
        event = decoding.event(row[:4])
    except DamagedError:
        return
    assert event is None or isinstance(event.data, dict)


STEPS = 30


def small_run(info: Any, events: list[Any]) -> Run:
    rng = np.random.default_rng(0)
    norms = np.exp(rng.standard_normal((STEPS, 2)))
    norms[5] = np.nan
    totals = np.sqrt((norms**2).sum(axis=1))
    steps = {"norm": totals, "loss": np.linspace(2, 1, STEPS), "nonfinite": np.isnan(totals)}
    tensors = [TensorInfo(f"fc{i}.weight", (2, 2), "float32", "Linear", i) for i in range(2)]
    run = Run.from_arrays(steps=steps, tensors=tensors, tensor_norms=norms, info=info)
    run.events = events
    return run


def read_by_everybody(rows: Any, told: Any) -> None:
    """Facts and events as a file holds them, taken by all rules and by `calibrate`."""
    facts = decoding.info(through_json(rows))
    events = [decoding.event((5, 1.0, kind, json.dumps(told.get(kind)))) for kind in EVENTS]
    run = small_run(facts, [event for event in events if event is not None])
    assert all(finding.title for finding in diagnose(run))
    calibrate(run)


@examples(40)
@given(spoilt(INFO), spoilt(EVENTS, 6))
def test_whoever_reads_what_was_decoded_need_not_look_again(rows: Any, told: Any) -> None:
    read_by_everybody(rows, told)


@pytest.mark.parametrize("path", sorted(FINDS.glob("*.json")), ids=lambda path: path.stem)
def test_what_was_found_once_is_not_found_again(path: Path) -> None:
    found = json.loads(path.read_text())
    read_by_everybody(INFO | found.get("info", {}), EVENTS | found.get("events", {}))


packed = st.one_of(
    st.binary(max_size=64),
    st.binary(max_size=64).map(zlib.compress),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=8).map(
        lambda numbers: encode.pack(np.array(numbers, np.int64))
    ),
    st.binary(max_size=64).map(lambda data: zlib.compress(data)[:-2]),
)


@examples(100)
@given(packed, st.sampled_from([np.uint16, np.uint32, np.int64]), st.integers(0, 4))
def test_packed_bytes_are_the_array_or_refused(blob: bytes, dtype: Any, rows: int) -> None:
    for read in (
        lambda: encode.unpack(blob, dtype, (rows, 2)),
        lambda: encode.unpack_sparse(blob, np.zeros((rows, 2))),
        lambda: encode.decode_steps(blob, rows, STEP_DTYPE.names or ()),
    ):
        try:
            array = read()
        except DamagedError:
            continue
        assert array.shape in {(rows, 2), (rows,)}
