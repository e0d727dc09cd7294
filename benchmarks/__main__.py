"""The benchmark table.

    python -m benchmarks [--seconds 8] [--threads 1 2] [--training-steps 1500]
                         [--clock wall] [--write]

Each part runs in a process of its own, confined to as many cores as threads. `--write`
replaces benchmarks/RESULTS.md's table and benchmarks/results.csv.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from benchmarks.rows import Row, machine, table, write_csv
from benchmarks.timing import CLOCKS

# TensorFlow and Triton, which a torch optimizer imports, cannot live in one process.
PARTS = ("clipping", "stepping", "steps", "launching")
HERE = Path(__file__).parent
BETWEEN = re.compile(r"(?<=<!-- table -->\n).*(?=<!-- end -->)", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--seconds", type=float, default=8, help="for each case")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--training-steps", type=int, default=1500)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: on a busy machine")
    parser.add_argument("--write", action="store_true", help="keep the result in benchmarks/")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        measure(options, options.threads[0])
        return
    rows = [row for n in options.threads for part in PARTS for row in in_child(part, n, options)]
    facts = ", ".join(f"{k} {v}" for k, v in machine().items())
    text = f"{facts}\n\n{table(rows)}\n"
    print(text)
    write_csv(rows, HERE / "results.csv" if options.write else Path("benchmarks.csv"))
    if options.write:
        page = HERE / "RESULTS.md"
        page.write_text(BETWEEN.sub(lambda _: text, page.read_text()))


def in_child(part: str, threads: int, options: argparse.Namespace) -> list[Row]:
    """Measure in a process that has so many cores and threads."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    settings = dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"), str(threads))
    env = {**os.environ, **settings, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "benchmarks", "--part", part, "--threads", str(threads)]
    command += ["--seconds", str(options.seconds), "--clock", options.clock]
    command += ["--training-steps", str(options.training_steps)]
    done = subprocess.run(
        command,
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    return [Row(**json.loads(line)) for line in done.stdout.splitlines() if line.startswith("{")]


def measure(options: argparse.Namespace, threads: int) -> None:
    """One part, in this process; one JSON line a row."""
    import torch

    from benchmarks import clipping, launching, steps

    torch.set_num_threads(threads)
    part, seconds, clock = options.part, options.seconds, options.clock
    if part == "clipping":
        rows: Iterator[Row] = clipping.clipping_rows(threads, seconds, clock)
    elif part == "stepping":
        rows = clipping.stepping_rows(threads, seconds, clock)
    elif part == "steps":
        rows = steps.all_rows(threads, seconds, clock)
    else:
        rows = launching.all_rows(threads, options.training_steps, clock, rounds=2)
    for row in rows:
        print(f"{row.set}: {row.case}: {row.contender}", file=sys.stderr)
        print(json.dumps(asdict(row)), flush=True)


if __name__ == "__main__":
    main()
