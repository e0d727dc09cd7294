"""Runs commands in forks of one process that has a framework loaded, which takes seconds in each.

    python forks.py MODULE...

For each line of standard input, ``[words, folder, environment, stem]`` in JSON, a fork is what
`python` would be with these words; its output stands in ``STEM.out`` and ``STEM.err``, and its
exit code is the answer.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import sys
import threading
import time
import types
import weakref
from collections.abc import Callable
from typing import NoReturn

SECONDS = 240


def command_in_fork(words: list[str], folder: str, environment: dict[str, str], stem: str) -> int:
    """The exit code of `python WORDS`; -9 where that takes too long."""
    pid = os.fork()
    if pid == 0:
        try:
            be_command(words, folder, environment, stem)
        finally:
            os._exit(99)
    return code_at_end(pid, SECONDS)


def be_command(words: list[str], folder: str, environment: dict[str, str], stem: str) -> NoReturn:
    """Be `python WORDS`, in a fork."""
    for number, name in enumerate((os.devnull, stem + ".out", stem + ".err")):
        file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if words[:2] == ["-m", "steadygrad"]:
        from steadygrad import cli

        sys.argv = [cli.__file__, *words[2:]]
        sys.path[0] = folder
        end_as_python(cli.main)
    sys.argv = words
    path = os.path.abspath(words[0])
    sys.path[0] = os.path.dirname(path)
    end_as_python(lambda: plainly(path))


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


def plainly(path: str) -> None:
    """As Python does it."""
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=path, __builtins__=__builtins__, __annotations__={})
    sys.modules["__main__"] = main
    with open(path, "rb") as file:
        code = compile(file.read(), path, "exec", dont_inherit=True)
    exec(code, main.__dict__)


def all_end(calls: list[Callable[[], None]]) -> None:
    """Make each call in a fork; where one fails, the others wait for it for ever: end them."""
    left = {fork_of(call) for call in calls}
    while left:
        pid, status = os.wait()
        left.discard(pid)
        if status:
            for other in left:
                os.kill(other, 9)
            sys.exit(1)


def fork_of(call: Callable[[], None]) -> int:
    """The number of a fork that makes the call, and ends."""
    pid = os.fork()
    if pid == 0:
        end_as_python(call)
    return pid


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


def load(*modules: str) -> None:
    """Load, once for all forks, what takes seconds in each."""
    for module in modules:
        importlib.import_module(module)
    if "torch" in modules:
        import torch
        import torch._dynamo  # the first optimizer of a process loads it

        torch.set_num_threads(1)
    gc.freeze()  # which forks would copy otherwise, page by page, as they look for garbage


if __name__ == "__main__":
    load(*sys.argv[1:])
    for line in sys.stdin:
        print(command_in_fork(*json.loads(line)), flush=True)
