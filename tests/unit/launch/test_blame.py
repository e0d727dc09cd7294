"""An error of ours is told as ours, one of the script as the script's, wherever it comes up."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest

import steadygrad
from steadygrad.errors import AttachError, RunFileError
from steadygrad.invisible import INVISIBLE
from steadygrad.launch.blame import NOT_OF_THE_SCRIPT, aside, cause
from steadygrad.launch.process import _without_our_frames

INSIDE = str(Path(steadygrad.__file__).parent / "torch" / "made_up.py")
STANDING_IN = str(Path(steadygrad.__file__).parent / "torch" / "dropins" / "made_up.py")
LIBRARY = os.__file__.replace("os.py", "site-packages/lib.py")
SCRIPT = "/home/somebody/train.py"


def function(where: str, body: str, **names: Any) -> Callable[[], None]:
    """A function whose code stands in the file ``where``."""
    exec(compile(f"def act():\n    {body}\n", where, "exec"), names)
    act: Callable[[], None] = names["act"]
    return act


def raised(act: Callable[[], None]) -> Exception:
    try:
        act()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


FAILS = "raise ValueError('x')"


@pytest.mark.parametrize(
    ("innermost", "body", "told"),
    [
        (INSIDE, FAILS, ", by a fault of ours"),
        (LIBRARY, FAILS, ", by a fault of ours"),
        (SCRIPT, FAILS, ", by an error in train.py, line 2"),
        (INSIDE, "raise PermissionError(13, 'x')", ""),
        (INSIDE, "raise refused('x')", ""),
        (INSIDE, "raise unreadable('x')", ""),
    ],
)
def test_what_ended_something_of_ours(innermost: str, body: str, told: str) -> None:
    fails = function(innermost, body, refused=AttachError, unreadable=RunFileError)
    assert cause(raised(function(INSIDE, "fails()", fails=fails))) == told


def shown(innermost: str, body: str = FAILS) -> str:
    """What Python prints of an error that went from ``innermost`` through ours to a script."""
    fails = function(innermost, body, refused=AttachError)
    error = raised(function(SCRIPT, "ours()", ours=function(INSIDE, "fails()", fails=fails)))
    told = io.StringIO()
    with redirect_stderr(told):
        hook = _without_our_frames(lambda kind, error, trace: traceback.print_exception(error))
        hook(type(error), error, error.__traceback__)
    return told.getvalue()


def test_an_error_of_the_script_shows_no_frame_of_ours() -> None:
    for innermost in (SCRIPT, LIBRARY):
        told = shown(innermost)
        assert INSIDE not in told
        assert NOT_OF_THE_SCRIPT not in told


def test_an_error_of_ours_shows_our_frames_and_is_not_called_the_scripts() -> None:
    told = shown(INSIDE)
    assert told.count(INSIDE) == 2
    assert told.endswith(f"ValueError: x\n{NOT_OF_THE_SCRIPT}\n")


def test_errors_that_are_meant_are_the_scripts() -> None:
    before = sys.excepthook
    assert NOT_OF_THE_SCRIPT not in shown(INSIDE, "raise refused('type this')")
    assert NOT_OF_THE_SCRIPT not in shown(STANDING_IN, "raise TypeError('no tensors')")
    assert NOT_OF_THE_SCRIPT not in shown(INSIDE, "raise RecursionError('too deep')")
    assert sys.excepthook is before


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 keeps the frames")
@pytest.mark.parametrize("place", [INSIDE, INVISIBLE])
def test_functions_of_ours_step_aside_where_the_script_catches(place: str) -> None:
    def files(innermost: str) -> list[str]:
        fails = function(innermost, FAILS)
        within = function(INSIDE, "fails()", fails=fails)
        ours = function(place, "\n     with aside: within()", aside=aside, within=within)
        error = raised(function(SCRIPT, "ours()", ours=ours))
        return [frame.filename for frame in traceback.extract_tb(error.__traceback__)[1:]]

    assert files(SCRIPT) == [SCRIPT, SCRIPT]
    assert files(LIBRARY) == [SCRIPT, LIBRARY]
    assert files(INSIDE) == [SCRIPT, place, INSIDE, INSIDE]  # a fault of ours shows itself

    at_once = function(place, "\n     with aside: int('x')", aside=aside)
    error = raised(function(SCRIPT, "ours()", ours=at_once))
    assert [frame.filename for frame in traceback.extract_tb(error.__traceback__)[1:]] == [SCRIPT]
