"""`python -m corpus`: run the corpus and print its table.

Options: ``--tenth`` for the part that the tests run, ``--tuning`` or ``--held-out`` for
one part, ``--seed`` for one seed, ``--every N`` for one case in N, ``--json FILE`` for every
verdict, one a line as it comes, ``--keep DIR`` to keep the run files, so that the next time only
the rules run, ``--write`` to put the tables of the whole corpus into docs/diagnosis.md, ``-n`` for
the number of processes.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from cases import Case, all_cases, tenth
from judge import Verdict, judge
from tables import sections, written

PAGE = Path(__file__).parents[1] / "docs" / "diagnosis.md"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m corpus", description=__doc__)
    parser.add_argument("--tenth", action="store_true", help="the part that the tests run")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--tuning", action="store_true", help="only what rules were tuned on")
    part.add_argument("--held-out", action="store_true", help="only what they were not")
    parser.add_argument("--seed", type=int, help="only this seed")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="one case in N")
    parser.add_argument("--json", type=Path, help="append every verdict to this file, a line each")
    parser.add_argument("--keep", type=Path, help="keep run files here, and judge those it has")
    parser.add_argument("--write", action="store_true", help="put the tables into the page")
    parser.add_argument("-n", type=int, default=2, help="processes")
    arguments = parser.parse_args()
    if arguments.write and (arguments.tenth or arguments.tuning or arguments.held_out):
        parser.error("--write is for the whole corpus: leave out --tenth, --tuning, --held-out")
    if arguments.write and (arguments.seed is not None or arguments.every != 1):
        parser.error("--write is for the whole corpus: leave out --seed and --every")
    return arguments


def _chosen(arguments: argparse.Namespace) -> list[Case]:
    cases = tenth() if arguments.tenth else all_cases()
    if arguments.tuning or arguments.held_out:
        cases = [case for case in cases if case.held_out == arguments.held_out]
    cases = [case for case in cases if arguments.seed in (None, case.seed)]
    # in an order that means nothing, so that what is done so far is a fair sample of the whole
    return sorted(cases, key=lambda case: zlib.crc32(str(case).encode()))[:: arguments.every]


def _judged(cases: list[Case], arguments: argparse.Namespace) -> Iterator[Verdict]:
    """Verdicts as they come. TensorFlow keeps what it compiled: its processes are renewed."""
    go = functools.partial(judge, keep=arguments.keep)
    start = multiprocessing.get_context("spawn")
    for in_keras, tasks, size in ((True, 50, 1), (False, None, 4)):
        some = [case for case in cases if case.in_keras == in_keras]
        if some:
            with start.Pool(arguments.n, maxtasksperchild=tasks) as pool:
                yield from pool.imap_unordered(go, some, chunksize=size)


def main() -> None:
    """Run, print, and leave with 0."""
    arguments = _arguments()
    cases = _chosen(arguments)
    began = time.monotonic()
    verdicts: list[Verdict] = []
    if arguments.keep:
        arguments.keep.mkdir(parents=True, exist_ok=True)
    for verdict in _judged(cases, arguments):
        verdicts.append(verdict)
        if arguments.json:
            with arguments.json.open("a") as lines:
                lines.write(json.dumps(verdict.as_json()) + "\n")
        if sys.stderr.isatty():
            print(f"\r{len(verdicts)}/{len(cases)}", end="", file=sys.stderr)
    order = [str(case) for case in all_cases()]
    verdicts.sort(key=lambda v: order.index(str(v.case)))
    parts = sections(verdicts, time.monotonic() - began, arguments.n)
    print("\n\n".join(parts.values()))
    if len(cases) == len(order):
        from origins import report  # here: the processes that judge Keras need no torch

        print(f"\n{report()}")
    if arguments.write:
        PAGE.write_text(written(PAGE.read_text(), parts))


if __name__ == "__main__":
    main()
