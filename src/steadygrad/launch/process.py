"""Become the script: run it as `python script.py` or `python -m module` would have.

The script gets a `__main__` of its own. Its exceptions travel up to the
interpreter as they are, so that exit codes, `sys.exit("text")` and the death by
SIGINT are Python's own; only the excepthook is wrapped, at the last moment, to
leave our frames out of the traceback. No signal handler is installed: the
frameworks compose the ones they find, and forked workers inherit them.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from types import ModuleType, TracebackType
from typing import Any

from steadygrad.launch.blame import NOT_OF_THE_SCRIPT, is_ours, raised_by_us
from steadygrad.launch.plan import Plan

_displaced_mains: list[ModuleType] = []


def become(plan: Plan, ended: Callable[[BaseException | None], None]) -> None:
    """Run the plan's script in this process.

    Args:
        plan: what to run.
        ended: called with the exception that ended the script, or None.

    Raises:
        BaseException: whatever the script raises.
    """
    start = _module if plan.as_module else _script
    try:
        start(plan)
    except BaseException as error:
        ended(error)
        sys.excepthook = _without_our_frames(sys.excepthook)
        raise
    ended(None)


def stay_interrupted() -> None:
    """Have Python end by SIGINT, as it does after a Ctrl-C that nobody caught.

    It forgets one when a string is executed, as classes with fields do where they are made; so
    ours, at the script's end, would turn the death by SIGINT into an exit code of 1.
    """
    with contextlib.suppress(KeyboardInterrupt):
        exec("raise KeyboardInterrupt")


def _script(plan: Plan) -> None:
    path = _absolute(plan.target)
    main = _new_main()
    main.__dict__.update(
        __file__=path, __loader__=SourceFileLoader("__main__", path), __cached__=None
    )
    sys.argv = [plan.target, *plan.arguments]
    _set_first_path(os.path.dirname(os.path.realpath(path)))
    with open(path, "rb") as file:
        source = file.read()
    exec(compile(source, path, "exec", dont_inherit=True), main.__dict__)


def _module(plan: Plan) -> None:
    import runpy

    _new_main()
    sys.argv = ["-m", *plan.arguments]
    _set_first_path(os.getcwd())
    # what `python -m` itself calls; it reads and fills sys.modules["__main__"]
    run: Callable[[str], Any] = vars(runpy)["_run_module_as_main"]
    run(plan.target)


def _absolute(path: str) -> str:
    return os.path.join(os.getcwd(), path)  # not normalised, as Python does it


def _new_main() -> ModuleType:
    _displaced_mains.append(sys.modules["__main__"])  # its functions are on the stack below us
    main = ModuleType("__main__")
    main.__dict__.update(__builtins__=sys.modules["builtins"], __annotations__={})
    sys.modules["__main__"] = main
    return main


def _set_first_path(folder: str) -> None:
    if getattr(sys.flags, "safe_path", False):
        return
    # `python -m steadygrad` and console scripts both put their own folder there
    sys.path[0:1] = [folder]


Hook = Callable[[type[BaseException], BaseException, TracebackType | None], Any]


def _without_our_frames(hook: Hook) -> Hook:
    def excepthook(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        ours = raised_by_us(error)
        for chained in _chain(error):
            chained.__traceback__ = clean(chained.__traceback__, raised_by_us(chained))
        hook(kind, error, error.__traceback__)
        if ours:
            print(NOT_OF_THE_SCRIPT, file=sys.stderr)

    return excepthook


def _chain(error: BaseException) -> list[BaseException]:
    errors: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and not any(one is seen for seen in errors):
            errors.append(one)
            waiting += [one.__cause__, one.__context__]
    return errors


def clean(trace: TracebackType | None, ours: bool = False) -> TracebackType | None:
    """The traceback without frames of steadygrad, and of the importer on its behalf.

    Args:
        trace: the traceback.
        ours: keep frames of steadygrad below the script: the error is its own.

    Returns:
        What is left of it; None for nothing.
    """
    entries: list[TracebackType] = []
    while trace is not None:
        entries.append(trace)
        if trace.tb_frame.f_code in (_script.__code__, _module.__code__):
            entries.clear()  # the command line, click and this file stand before the script
        trace = trace.tb_next
    frames: list[TracebackType] = []
    for entry in entries:
        if ours or not is_ours(entry):
            frames.append(entry)
            continue
        while frames and frames[-1].tb_frame.f_code.co_filename.startswith("<frozen importlib"):
            frames.pop()  # Python hides these too, unless a frame like ours stands between
    following: TracebackType | None = None
    for entry in reversed(frames):
        entry.tb_next, following = following, entry
    return following
