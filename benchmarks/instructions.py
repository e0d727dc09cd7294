"""What `steadygrad run` adds to a step, in figures that other work on the machine does not move.

    python -m benchmarks.instructions [--only PINN] [--steps 63]

Valgrind's callgrind counts the instructions of the thread that trains, and what misses a second
level of cache of 1 MB that it simulates, plain and observed, in steps at which nothing is
sampled. Both take about a minute a training. The thread that writes is not counted, and rests
meanwhile: it works by the clock, which goes on while a step takes fifty times as long.
It needs Linux, valgrind and setarch.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
import textwrap
from pathlib import Path
from typing import NamedTuple

from benchmarks.launching import IMPORTS, TRAININGS, command_of, environment

FIRST = 65
"""The step from which on it counts: weights and activations are sampled at 64 and at 128."""
SCRIPT = """
import gc
import os
{setup}


def count(state):
    os.system("callgrind_control -i %s %d >/dev/null 2>&1" % (state, os.getpid()))


for number in range({last}):
    if number == {first}:
        gc.disable()
        for each in gc.get_objects():
            if type(each).__name__ == "Pump":
                each._interval = each._rest = each.longest = 1e6
        count("on")
{turn}
count("off")
"""
CALLGRIND = (
    "setarch -R valgrind --tool=callgrind --instr-atstart=no --cache-sim=yes --LL=1048576,8,64 "
    "--separate-threads=yes"
)


class Counts(NamedTuple):
    """Of the thread that trains, all steps together.

    Attributes:
        instructions: executed.
        misses: of the second level of cache, of instructions and data.
    """

    instructions: int
    misses: int


def counts_of(script: Path, observed: bool) -> Counts:
    """Run a script under callgrind."""
    out = script.with_suffix(".callgrind")
    fixed = {**environment(), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    command = [*CALLGRIND.split(), f"--callgrind-out-file={out}", *command_of(script, observed)]
    subprocess.run(command, check=True, capture_output=True, env=fixed)
    text = Path(f"{out}-01").read_text()
    names, totals = (re.search(rf"^{line}: (.*)", text, re.M) for line in ("events", "totals"))
    assert names is not None
    assert totals is not None
    found = dict(zip(names[1].split(), map(int, totals[1].split()), strict=True))
    return Counts(found["Ir"], sum(found[miss] for miss in ("ILmr", "DLmr", "DLmw")))


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    parser.add_argument("--only", default="", help="trainings whose name holds this")
    parser.add_argument("--steps", type=int, default=63, help="steps to count, 63 at most")
    arguments = parser.parse_args()
    print("| a step of | instructions | added | cache misses | added |\n|-|-:|-:|-:|-:|")
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "script.py"
        for name, (setup, turn) in TRAININGS.items():
            if arguments.only not in name:
                continue
            body = SCRIPT.format(
                setup=setup,
                turn=textwrap.indent(turn, " " * 4),
                first=FIRST,
                last=FIRST + arguments.steps,
            )
            script.write_text(IMPORTS.format(threads=1) + body)
            plain, observed = (counts_of(script, observed) for observed in (False, True))
            cells = []
            for before, after in zip(plain, observed, strict=True):
                share = f"{(after - before) / arguments.steps:,.0f} ({after / before - 1:.1%})"
                cells += [f"{before / arguments.steps:,.0f}", share]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
