"""Runs the blocks of one page in this folder: ``python run_page.py PAGE``. Any error ends it.

``--write`` puts what the blocks print into the page's output blocks.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

from command import PLACE
from pages import Block, blocks

from steadygrad.live.handle import Handle

TOLERANCE = 0.05
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def main(page: Path, write: bool) -> None:
    names: dict[str, object] = {"__name__": "__main__", "example": example, "shell": shell}
    printed, outputs, text = "", [], page.read_text(encoding="utf-8")
    for block in blocks(page):
        if block.is_output and write:
            if not agree(block.code, printed):  # one that agrees may be broken into lines by hand
                outputs.append((block.span, printed))
        elif block.is_output:
            check(block, printed)
        elif block.is_run:
            print(f"--- {block.place}", flush=True)
            exec(compile(block.setup, f"setup of {block.place}", "exec"), names)
            printed = run(block, names)
            print(printed, end="", flush=True)
    if write:
        assert page.read_text(encoding="utf-8") == text, f"{page} was edited meanwhile: run again"
        for (start, end), output in reversed(outputs):
            text = text[:start] + output + text[end:]
        page.write_text(text, encoding="utf-8")


def run(block: Block, names: dict[str, object]) -> str:
    """Run one block, or write the file that it is; returns what it prints."""
    if block.title:
        Path(block.title).write_text(block.code, encoding="utf-8")
        return ""
    if block.language == "bash":
        end_script(names)
        return shell(block.code)
    # blank lines in front, so that a traceback shows the page's own line numbers
    code = "\n" * (block.line - 1) + block.code
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, str(block.page), "exec"), names)
    return printed.getvalue()


def example(name: str) -> None:
    """For setups: put a script of this folder where the page's commands run."""
    shutil.copy(Path(__file__).with_name(name), name)


def end_script(names: dict[str, object]) -> None:
    """Put on record what the Python blocks above recorded: a reader's script has ended by now."""
    for value in list(names.values()):
        if isinstance(value, Handle):
            value.flush()


def shell(code: str) -> str:
    """Run commands as typed, the first that fails ends the page; pip's are checked elsewhere."""
    lines = [line for line in code.splitlines(True) if not line.startswith("pip install ")]
    folders = [os.path.dirname(sys.executable), os.environ["PATH"]]
    if PLACE in os.environ:  # of the socket at which `forking.py` waits, beside its `steadygrad`
        folders.insert(0, os.path.dirname(os.environ[PLACE]))
    environment = {**os.environ, "PATH": os.pathsep.join(folders)}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "".join(lines)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def check(block: Block, printed: str) -> None:
    """Compare what a page says that a block prints with what it printed."""
    if not agree(block.code, printed):
        raise AssertionError(f"{block.place} says\n{block.code}\nbut printed was\n{printed}")


def agree(said: str, printed: str) -> bool:
    """The same words, and numbers within `TOLERANCE`.

    Example:
        >>> agree("norm 5.00", "norm  5.1"), agree("norm 5", "norm 6"), agree("a 1", "b 1")
        (True, False, False)
    """
    if _NUMBER.sub("#", said).split() != _NUMBER.sub("#", printed).split():
        return False
    pairs = zip(_NUMBER.findall(said), _NUMBER.findall(printed), strict=True)
    return all(math.isclose(float(a), float(b), rel_tol=TOLERANCE) for a, b in pairs)


if __name__ == "__main__":
    warnings.simplefilter("default")
    main(Path(sys.argv[1]).resolve(), "--write" in sys.argv)
