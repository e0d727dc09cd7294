"""What a run file may hold, field by field: values of that type and size, or an error.

Run files travel, so nothing in one is trusted. A field of a table that is not what the writer
puts there makes the file damaged (`DamagedError`); a fact or an event's detail of another type
is left out, since everything else can be told without it. Nothing behind this module checks
types again.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Mapping, Set
from types import NoneType, UnionType
from typing import Union, cast, get_args, get_origin, get_type_hints, is_typeddict

from steadygrad.recovery.events import RecoveryEvent
from steadygrad.runlog.encode import DamagedError
from steadygrad.runlog.info import RunInfo
from steadygrad.runlog.origin import Origin
from steadygrad.runlog.records import TensorInfo
from steadygrad.runlog.run import Event
from steadygrad.vocabulary import (
    GAP,
    LADDER,
    NAN_LOSS,
    NAN_ORIGIN,
    RANKS,
    RECOVERY,
    SCRIPT_CLIP,
    THROUGH_TIME,
)

INT64 = 2**63
MOST_WHOLE = 2**53
"""Largest whole number of a fact; readers take them through float64."""
MOST_AXES = 64
MOST_JSON = 8 << 20
"""Characters of one JSON text."""
MOST_NAME = 1 << 20
MOST_DEPTH = 32
LONGEST_NUMBER = 400
"""Digits of a whole number in JSON; longer ones take square time to read."""

LONGEST_PATH = 4096

Field = Callable[[object], object]
"""Gives back a sound value, or raises ValueError or TypeError."""


def integer(value: object, what: str, low: int = -INT64, high: int = INT64 - 1) -> int:
    """A whole number of a table's column.

    Raises:
        DamagedError: it is something else, or out of range.

    Example:
        >>> integer(7, "rows")
        7
    """
    if not isinstance(value, int) or not low <= value <= high:
        raise DamagedError(f"{what} is {_short(value)}")
    return value


def text(value: object, what: str) -> str:
    """A name of a table's column, without halves of characters.

    Raises:
        DamagedError: it is no text, or far too long.
    """
    if not isinstance(value, str) or len(value) > MOST_NAME:
        raise DamagedError(f"{what} is {_short(value)}")
    return _encodable(value)


def json_value(source: object, what: str) -> object:
    """What a JSON text says.

    Raises:
        DamagedError: it is no JSON, or too long or too deep.

    Example:
        >>> json_value('{"a": [1]}', "info")
        {'a': [1]}
    """
    if not isinstance(source, str) or len(source) > MOST_JSON:
        raise DamagedError(f"{what} is {_short(source)}")
    try:
        return _clean(json.loads(source, parse_int=_parse_int), MOST_DEPTH)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{what} is not JSON that steadygrad writes ({error})") from None


def tensor(row: tuple[object, ...]) -> TensorInfo:
    """A row of ``tensors``, without its number.

    Raises:
        DamagedError: a column holds something else.
    """
    name, shape, dtype, module, position, optimizer = row
    lengths = json_value(shape, "the shape of a tensor")
    if not isinstance(lengths, list) or len(lengths) > MOST_AXES:
        raise DamagedError(f"the shape of a tensor is {_short(lengths)}")
    return TensorInfo(
        text(name, "the name of a tensor"),
        tuple(integer(length, "a length of a tensor", 0) for length in lengths),
        text(dtype, "the dtype of a tensor"),
        text(module, "the module of a tensor"),
        integer(position, "the position of a tensor"),
        integer(optimizer, "the optimizer of a tensor"),
    )


def event(row: tuple[object, ...]) -> Event | None:
    """A row of ``events``; None where it cannot be told any more.

    Raises:
        DamagedError: a column holds something else.
    """
    step, at, kind, source = row
    number = None if step is None else integer(step, "the step of an event")
    name = text(kind, "the kind of an event")
    data = json_value(source, f"an event ({name})")
    if not isinstance(data, dict):
        return None
    when = float(at) if isinstance(at, (int, float)) else math.nan
    return _typed(Event(number, when, name, data))


def _typed(event: Event) -> Event | None:
    data = _fitting(event.data, EVERY_EVENT | EVENTS.get(event.kind, {}))
    if event.kind == NAN_ORIGIN:
        try:
            Origin.from_json(data)
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
            return None
    return Event(event.step, event.time, event.kind, data)


def info(rows: Mapping[str, object]) -> RunInfo:
    """Facts of a run by name; those of a type that they cannot have are left out.

    Args:
        rows: name to what JSON held.
    """
    return cast("RunInfo", _fitting(rows, INFO))


def _fitting(values: Mapping[str, object], fields: Mapping[str, Field]) -> dict[str, object]:
    sound = {}
    for key, value in values.items():
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            sound[key] = fields.get(key, _anything)(value)
    return {key: value for key, value in sound.items() if value is not None or key not in fields}


def _anything(value: object) -> object:
    return value


def _a(*kinds: type) -> Field:
    def check(value: object) -> object:
        if value is not None and not isinstance(value, kinds):
            raise TypeError
        return value

    return check


def _list_of(field: Field, *, gaps: bool = False) -> Field:
    """A list; with gaps, null stands for an entry that is not known."""

    def check(value: object) -> object:
        if value is None:
            return None
        if not isinstance(value, list):
            raise TypeError
        entries = [field(entry) for entry in value]
        if not gaps and any(entry is None for entry in entries):
            raise TypeError
        return entries

    return check


def _table_of(**fields: Field) -> Field:
    def check(value: object) -> object:
        if value is not None and not isinstance(value, dict):
            raise TypeError
        return None if value is None else _fitting(value, fields)

    return check


def _number(value: object) -> object:
    """A number; JSON keeps NaN and inf as text."""
    return value if value is None else float(value) if isinstance(value, str) else _real(value)


_real = _a(int, float)
_word = _a(str)


def _path(value: object) -> object:
    if not isinstance(value, str) or len(value) > LONGEST_PATH or "\0" in value:
        raise TypeError
    return value


def _whole_number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > MOST_WHOLE:
        raise TypeError
    return value


def _either(*fields: Field) -> Field:
    def check(value: object) -> object:
        for field in fields:
            with contextlib.suppress(TypeError, ValueError):
                return field(value)
        raise TypeError

    return check


def _whole_table(fields: Mapping[str, Field], keys: Set[str]) -> Field:
    """A table of which these parts may not be missing."""
    table = _table_of(**fields)

    def check(value: object) -> object:
        sound = table(value)
        if isinstance(sound, dict) and not keys <= sound.keys():
            raise ValueError
        return sound

    return check


def fields_of(record: type) -> dict[str, Field]:
    """What the fields of a class may hold, by its annotations.

    Args:
        record: a TypedDict, or a class of fields.

    Example:
        >>> fields_of(Event)["step"](None), fields_of(Event)["kind"]("gap")
        (None, 'gap')
    """
    return {name: _field_of(hint) for name, hint in get_type_hints(record).items()}


def _field_of(hint: object) -> Field:
    if isinstance(hint, type) and is_typeddict(hint):
        return _whole_table(fields_of(hint), getattr(hint, "__required_keys__"))  # noqa: B009
    form, parts = get_origin(hint), get_args(hint)
    if form is list:
        return _list_of(_field_of(parts[0]))
    if form in (Union, UnionType):
        return _either(*map(_field_of, parts))
    return _PLAIN[form or hint]


_PLAIN: dict[object, Field] = {
    str: _word,
    int: _whole_number,
    float: _number,
    bool: _a(bool),
    NoneType: _a(),
    dict: _a(dict),
    Mapping: _a(dict),
}

INFO: dict[str, Field] = fields_of(RunInfo) | {"seed": _anything}  # only shown
"""What readers of a run's facts rely on."""

RANK_COLUMNS = (
    "rank",
    "step",
    "norm",
    "own_norm",
    "loss",
    "nonfinite",
    "seconds",
    "busy",
    "loss_known",
)

EVERY_EVENT: dict[str, Field] = {"optimizer": _whole_number, "step": _whole_number}
EVENTS: dict[str, dict[str, Field]] = {
    NAN_LOSS: {},
    GAP: {"steps": _whole_number},
    RECOVERY: fields_of(RecoveryEvent),
    LADDER: {"ladder": _word, "folder": _path},
    RANKS: dict.fromkeys(RANK_COLUMNS, _list_of(_number, gaps=True))
    | dict.fromkeys(("rank", "step"), _list_of(_whole_number)),
    THROUGH_TIME: {
        "tensor": _whole_number,
        "length": _whole_number,
        "positions": _list_of(_whole_number),
        "norms": _list_of(_number, gaps=True),
    },
    SCRIPT_CLIP: dict.fromkeys(
        (
            "max_norm",
            "norm_type",
            "norm",
            "coef",
            "params",
            "backward_since_step",
            "backward_since_clip",
        ),
        _number,
    ),
}
"""What readers of an event's details rely on."""


def _parse_int(digits: str) -> int | float:
    if len(digits) > LONGEST_NUMBER:
        raise ValueError(f"a number of {len(digits)} digits")
    number = int(digits)
    return number if abs(number) < INT64 else float(number)


def _clean(value: object, depth: int) -> object:
    """The value without halves of characters, where it is not nested too deep."""
    if isinstance(value, str):
        return _encodable(value)
    if isinstance(value, (list, dict)) and not depth:
        raise ValueError(f"nested more than {MOST_DEPTH} deep")
    if isinstance(value, list):
        return [_clean(entry, depth - 1) for entry in value]
    if isinstance(value, dict):
        return {_encodable(key): _clean(entry, depth - 1) for key, entry in value.items()}
    return value


def _encodable(words: str) -> str:
    """Text that can be written as UTF-8: a lone surrogate becomes a question mark."""
    return words.encode("utf-8", "replace").decode("utf-8")


def _short(value: object) -> str:
    shown = repr(value) if not isinstance(value, (str, bytes)) else repr(value[:40])
    return f"{type(value).__name__} {shown[:60]}"
