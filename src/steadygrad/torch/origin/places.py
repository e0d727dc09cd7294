"""Lines of a program: noted as a code object and an offset, read only when somebody asks."""

from __future__ import annotations

import os
from types import CodeType, FrameType

import torch

_TORCH = os.path.dirname(torch.__file__) + os.sep
_OURS = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) + os.sep
_DEMOS = os.path.join(_OURS, "demos") + os.sep

Place = tuple[CodeType, int]
"""A line of a program, cheap to note: its code and the offset of the instruction."""

library: dict[int, tuple[bool, CodeType]] = {}
"""Whether code is torch's or ours, as far as it was asked, by id: to hash code is to read it."""


def place_of(frame: FrameType | None) -> Place:
    """The nearest line outside torch and steadygrad."""
    first = frame
    while frame is not None:
        code = frame.f_code
        entry = library.get(id(code))
        if not (is_library(code) if entry is None else entry[0]):
            return code, frame.f_lasti
        frame = frame.f_back
    assert first is not None
    return first.f_code, first.f_lasti


def is_library(code: CodeType) -> bool:
    """Whether code is torch's or ours."""
    entry = library.get(id(code))
    if entry is None:
        file = code.co_filename
        inside = file.startswith((_TORCH, _OURS, "<frozen importlib"))
        entry = library[id(code)] = inside and not file.startswith(_DEMOS), code
    return entry[0]


def line_of(place: Place) -> tuple[str, int]:
    """File and line number of a place."""
    code, offset = place
    for start, end, line in code.co_lines():
        if start <= offset < end and line is not None:
            return code.co_filename, line
    return code.co_filename, code.co_firstlineno
