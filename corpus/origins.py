"""`python -m corpus.origins`: is the right line named? A table, and what went wrong.

`make corpus` prints the same table without the scripts, which take longest.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import origin_cases
import origin_heldout_cases as heldout
import origin_scripts

from steadygrad.runlog.origin import Origin

BUILT_WITH = "the finder was built with"
PARTS = {1: "held out, first part", 2: "held out, second part"}
SCRIPTS = "held out, scripts under `steadygrad run`"


@dataclass
class Group:
    """Cases of one kind.

    Attributes:
        right: cases whose line was named.
        wrong: the others, with what was said.
    """

    right: list[str] = field(default_factory=list)
    wrong: list[tuple[str, Origin | None]] = field(default_factory=list)

    def row(self, name: str) -> str:
        """A row of the table."""
        total = len(self.right) + len(self.wrong)
        makers = {case.rpartition("-")[0] for case in self.right}
        makers |= {case.rpartition("-")[0] for case, _ in self.wrong}
        share = 100 * len(self.right) / max(total, 1)
        return f"| {name} | {len(makers)} | {total} | {len(self.right)} ({share:.1f} %) |"


Result = tuple[str, str, Origin | None, bool]
"""A group, a case, what was said, and whether that is right."""


def results(scripts: bool) -> Iterator[Result]:
    """Run every case.

    Args:
        scripts: also those that are run as scripts.
    """
    for case in origin_cases.all_cases():
        origin = origin_cases.run(case)
        yield BUILT_WITH, str(case), origin, origin_cases.is_right(case, origin)
    for other in heldout.all_cases():
        origin = heldout.run(other)
        yield PARTS[heldout.part_of(other)], str(other), origin, heldout.is_right(other, origin)
    for name in origin_scripts.SCRIPTS if scripts else ():
        origin, line = origin_scripts.run(name)
        right = origin is not None and origin.replayed and origin.line == line
        yield SCRIPTS, f"{name}-script", origin, right


def report(scripts: bool = False) -> str:
    """The table of NaN origins, and every wrong answer.

    Args:
        scripts: also run those cases that are scripts.
    """
    began = time.process_time()
    groups: dict[str, Group] = {}
    for name, case, origin, right in results(scripts):
        group = groups.setdefault(name, Group())
        if right:
            group.right.append(case)
        else:
            group.wrong.append((case, origin))
    rows = [group.row(name) for name, group in groups.items()]
    wrong = [f"- {case}: {said}" for group in groups.values() for case, said in group.wrong]
    head = ["| NaN origins: cases that | makers | cases | right line |", "|---|---|---|---|"]
    seconds = f"{time.process_time() - began:.0f} s of CPU, without what scripts take"
    return "\n".join([*head, *rows, f"\nIn {seconds}.", *wrong])


def main() -> None:
    """Run every case and print."""
    parser = argparse.ArgumentParser(prog="python -m corpus.origins", description=__doc__)
    parser.add_argument("--no-scripts", action="store_true", help="leave the scripts out")
    print(report(scripts=not parser.parse_args().no_scripts))


if __name__ == "__main__":
    main()
