"""Runs pages, and the commands on them, in forks of one process that has torch loaded.

    python forking.py

For each line of standard input, ``[page, folder, output]`` in JSON, a fork runs the page's blocks
in that folder and writes what they print to that file; its exit code is the answer.

The commands of a page find a `steadygrad` on their PATH (and a `python -m steadygrad`) that hands
arguments, folder, environment and files (`command.py`) to a second fork, which was taken before
the page's first block.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import warnings
from pathlib import Path
from typing import NoReturn

sys.path.insert(1, str(Path(__file__).parents[1]))

from command import PLACE
from run_page import main

from forks import code_at_end, end_as_python, load
from steadygrad import cli

SECONDS_A_PAGE = 900  # a guard against hanging, not a measure
REAL = sys.executable
SHIM = f"""#!/bin/sh
case $0 in *python)
  [ "$1 $2" = "-m steadygrad" ] || exec "{REAL}" "$@"
  shift 2 ;;
esac
exec "{REAL}" -I -S "{Path(__file__).with_name("command.py")}" "$@"
"""


def page_in_fork(page: str, folder: str, output: str) -> int:
    """The exit code of a page; what it started is gone afterwards."""
    with tempfile.TemporaryDirectory() as commands:
        pid = os.fork()
        if pid == 0:
            os.setsid()
            be_page(page, folder, output, commands)
        try:
            return code_at_end(pid, SECONDS_A_PAGE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def be_page(page: str, folder: str, output: str, commands: str) -> NoReturn:
    """Be `run_page.py`; in the folder ``commands`` lies what its commands find."""
    os.chdir(folder)
    files = [os.open(os.devnull, os.O_RDONLY), os.open(output, os.O_WRONLY | os.O_CREAT)]
    take_files([*files, files[1]])
    os.environ.update(HOME=folder, MPLBACKEND="agg")
    for name in ("steadygrad", "python"):
        shim = Path(commands, name)
        shim.write_text(SHIM)
        shim.chmod(0o755)
    os.environ[PLACE] = f"{commands}/socket"
    serve_commands(os.environ[PLACE])
    sys.path[:2] = [str(Path(__file__).parent)]
    end_as_python(lambda: run_page(Path(page)))


def run_page(page: Path) -> None:
    warnings.simplefilter("default")
    main(page, write=False)


def serve_commands(address: str) -> None:
    """Leave a fork behind, as this process is now, from which commands are forked."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    if os.fork():
        listener.close()
        return
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            answer(connection)
        connection.close()


def answer(connection: socket.socket) -> NoReturn:
    """Run the command that comes in, and send its exit code."""
    _, files, _, _ = socket.recv_fds(connection, 1, 3)
    arguments, folder, environment = json.loads(connection.makefile("rb").read())
    pid = os.fork()
    if pid == 0:
        connection.close()
        take_files(files)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = [str(Path(REAL).with_name("steadygrad")), *arguments]
        sys.path[:2] = [str(Path(REAL).parent)]
        sys.executable = str(Path(environment[PLACE]).with_name("python"))  # for `compare`
        end_as_python(cli.main)
    _, status = os.waitpid(pid, 0)
    connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def take_files(files: list[int]) -> None:
    """Make three open files standard input, output and error."""
    for number, file in enumerate(files):
        os.dup2(file, number)


if __name__ == "__main__":
    import triton  # noqa: F401  # before TensorFlow: see tests/conftest.py

    load("torch", "steadygrad.launch.torch_script.observer")
    for line in sys.stdin:
        print(page_in_fork(*json.loads(line)), flush=True)
