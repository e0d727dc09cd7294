"""`python -m tests.corpus.origins`: is the right line named? A table, and what went wrong."""

from __future__ import annotations

import collections
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from origin_cases import Case, all_cases, is_right, run

from steadygrad.runlog.origin import Origin


def main() -> None:
    """Run every case and print."""
    began = time.monotonic()
    right: collections.Counter[str] = collections.Counter()
    total: collections.Counter[str] = collections.Counter()
    wrong: list[tuple[Case, Origin | None]] = []
    for case in all_cases():
        origin = run(case)
        total[case.maker] += 1
        right[case.maker] += is_right(case, origin)
        if not is_right(case, origin):
            wrong.append((case, origin))
    print("| maker | cases | right line |\n|---|---|---|")
    for maker, count in total.items():
        print(f"| {maker} | {count} | {right[maker]} |")
    done = sum(right.values())
    share = 100 * done / total.total()
    seconds = time.monotonic() - began
    print(f"\n**{done} of {total.total()} right ({share:.1f} %)**, in {seconds:.0f} s")
    for case, origin in wrong:
        print(f"- {case}: {origin}")


if __name__ == "__main__":
    main()
