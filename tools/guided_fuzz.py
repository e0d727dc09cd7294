"""Fuzz the decoding of run files, guided by the lines that each input reaches (atheris).

    pip install atheris
    python tools/guided_fuzz.py TEST [libFuzzer's options, such as -max_total_time=600]

TEST is one of the tests by Hypothesis in `tests/unit/runlog/test_decoding.py`. What it finds is to
become a file in `tests/unit/runlog/finds`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

TESTS = Path(__file__).parents[1] / "tests" / "unit" / "runlog"


def main() -> None:
    """Run one test on the inputs that atheris makes."""
    sys.path.insert(0, str(TESTS))
    with atheris.instrument_imports(include=["steadygrad"]):
        import test_decoding
    test = getattr(test_decoding, sys.argv.pop(1))
    atheris.Setup(sys.argv, test.hypothesis.fuzz_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
