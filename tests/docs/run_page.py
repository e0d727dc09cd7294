"""Runs the blocks of one page in this folder: ``python run_page.py PAGE``. Any error ends it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

from pages import blocks


def main() -> None:
    names: dict[str, object] = {"__name__": "__main__", "example": example, "shell": shell}
    for block in blocks(Path(sys.argv[1])):
        if not block.is_run:
            continue
        print(f"--- {block.place}", flush=True)
        exec(compile(block.setup, f"setup of {block.place}", "exec"), names)
        if block.title:
            Path(block.title).write_text(block.code, encoding="utf-8")
        elif block.language == "python":
            # blank lines in front, so that a traceback shows the page's own line numbers
            code = "\n" * (block.line - 1) + block.code
            exec(compile(code, str(block.page), "exec"), names)
        else:
            shell(block.code)


def example(name: str) -> None:
    """For setups: put a script of this folder where the page's commands run."""
    shutil.copy(Path(__file__).with_name(name), name)


def shell(code: str) -> None:
    """Run commands as typed, the first that fails ends the page; pip's are checked elsewhere."""
    lines = [line for line in code.splitlines(True) if not line.startswith("pip install ")]
    bin_folder = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "".join(lines)],
        env=environment,
        stdin=subprocess.DEVNULL,
        check=True,
    )


if __name__ == "__main__":
    warnings.simplefilter("default")
    main()
