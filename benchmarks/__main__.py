"""The benchmark table.

    python -m benchmarks [--parts clipping steps] [--threads 1 2] [--seconds 8]
                         [--training-steps 600] [--clock wall] [--write]

Each part runs in a process of its own, confined to as many cores as threads. `--write` puts the
figures into benchmarks/results.csv in place of older ones of the same cases, and
that file, as a table, into benchmarks/RESULTS.md: parts can be measured one by one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from benchmarks import jax_tf
from benchmarks.rows import Row, described, merged, read_csv, table, write_csv
from benchmarks.timing import CLOCKS

# TensorFlow and Triton, which a torch optimizer imports, cannot live in one process.
PARTS = ("clipping", "stepping", "steps", "launching", "jax", "tensorflow")
HERE = Path(__file__).parent
KEPT = HERE / "results.csv"
BETWEEN = re.compile(r"(?<=<!-- table -->\n).*(?=<!-- end -->)", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--seconds", type=float, default=8, help="for each case")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--training-steps", type=int, default=600)
    clock_help = "cpu: on a busy machine; launching has clocks of its own"
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help=clock_help)
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--write", action="store_true", help="keep the result in benchmarks/")
    parser.add_argument("--here", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        measure(options, options.threads[0])
        return
    found = [
        row for n in options.threads for part in options.parts for row in in_child(part, n, options)
    ]
    rows = described(found)
    print(table(rows))
    if options.write:
        keep(rows)
    else:
        write_csv(rows, Path("benchmarks.csv"))


def keep(rows: list[dict[str, object]]) -> None:
    """Put rows into results.csv, and that file into RESULTS.md."""
    every = merged(read_csv(KEPT), rows)
    write_csv(every, KEPT)
    page = HERE / "RESULTS.md"
    page.write_text(BETWEEN.sub(lambda _: table(every) + "\n", page.read_text()))


def in_child(part: str, threads: int, options: argparse.Namespace) -> list[Row]:
    """Measure in a process that has so many cores and threads."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    settings = dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"), str(threads))
    env = {**os.environ, **settings, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "benchmarks", "--here", part, "--threads", str(threads)]
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
    for row in rows_of_part(options, threads):
        print(f"{row.case}: {row.contender}: {row.ms} ms, {row.ratio}", file=sys.stderr)
        print(json.dumps(asdict(row)), flush=True)


def rows_of_part(options: argparse.Namespace, threads: int) -> Iterator[Row]:
    """The rows of one part, as they are measured."""
    part, seconds, clock = options.here, options.seconds, options.clock
    if part in jax_tf.LIBRARIES:
        return jax_tf.LIBRARIES[part](threads, seconds, list(jax_tf.LEAVES))
    import torch

    from benchmarks import clipping, launching, steps

    torch.set_num_threads(threads)
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "clipping": lambda: clipping.clipping_rows(threads, seconds, clock),
        "stepping": lambda: clipping.stepping_rows(threads, seconds, clock),
        "steps": lambda: steps.all_rows(threads, seconds, clock),
        "launching": lambda: launching.all_rows(threads, options.training_steps, pairs=6),
    }
    return parts[part]()


if __name__ == "__main__":
    main()
