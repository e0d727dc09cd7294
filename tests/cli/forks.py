"""Runs scripts plainly and observed, in forks of one process that has torch loaded.

    python forks.py FOLDER

For each line of standard input, a script's path, two forks run it; their exit codes stand in
one line of the answer, their output in ``NAME.plain.out``, ``NAME.observed.err`` and so on.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import threading
import time
import types
import weakref
from collections.abc import Callable
from typing import NoReturn

SECONDS = 120


def child(path: str, observed: bool, stem: str) -> None:
    """Be the script, in a fork; never returns."""
    for number, name in ((1, ".out"), (2, ".err")):
        file = os.open(stem + name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    end_as_python(lambda: (watched if observed else plainly)(path))


def end_as_python(begin: Callable[[], None]) -> NoReturn:
    """Call ``begin`` and end this fork as Python ends, on the files that 1 and 2 are now."""
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
    atexit._clear()
    weakref.finalize._registry.clear()  # as in a new process: the first one registers its exit
    weakref.finalize._registered_with_atexit = False
    code = 0
    try:
        begin()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        error.__traceback__ = trace
        sys.excepthook(type(error), error, trace)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)


def watched(path: str) -> None:
    """As ``steadygrad run -q`` does it."""
    from steadygrad.launch.plan import Plan
    from steadygrad.launch.session import launch

    launch(Plan(path, out=path.removesuffix(".py") + ".db", quiet=True, force=True))


def plainly(path: str) -> None:
    """As Python does it."""
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=path, __builtins__=__builtins__, __annotations__={})
    sys.modules["__main__"] = main
    sys.argv = [path]
    with open(path, "rb") as file:
        code = compile(file.read(), path, "exec", dont_inherit=True)
    exec(code, main.__dict__)


def code_of(path: str, observed: bool) -> int:
    """Run a script to its end; -9 where that takes too long."""
    stem = path.removesuffix(".py") + (".observed" if observed else ".plain")
    pid = os.fork()
    if pid == 0:
        try:
            child(path, observed, stem)
        finally:
            os._exit(99)
    return code_at_end(pid, SECONDS)


def code_at_end(pid: int, seconds: float) -> int:
    """The exit code of a child; one that takes longer is killed, and its code is -9."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return -9


def load() -> None:
    """Load, once for all forks, what takes seconds in each."""
    import torch
    import torch._dynamo  # the first optimizer of a process loads it

    import steadygrad.launch.torch_script.observer  # noqa: F401

    torch.set_num_threads(1)


if __name__ == "__main__":
    load()
    for line in sys.stdin:
        print(json.dumps([code_of(line.strip(), False), code_of(line.strip(), True)]), flush=True)
