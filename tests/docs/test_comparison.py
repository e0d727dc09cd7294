"""`benchmarks/comparison.py` makes its page: hours of it, so here of one short training."""

from __future__ import annotations

from ..workbench import Workbench
from .pages import ROOT

SHORT = f"""
import dataclasses
import sys

sys.path.insert(0, {str(ROOT)!r})
from benchmarks import comparison, deciding

deciding.STEPS, deciding.ROUNDS = 2, 1
training = next(t for t in comparison.TRAININGS if t.name == "vanishing_mlp")
few = dataclasses.replace(
    training, arguments=("--steps", "25"), policies=("none", "norm:1.0", "auto")
)
comparison.TRAININGS = (few,)
comparison.main()
"""


def test_the_page_is_made(forked: Workbench) -> None:
    words = ("--seeds", "1", "--jobs", "1", "--only", "vanishing_mlp")
    script, page = forked.write("make.py", SHORT), forked.folder / "page.md"
    made = forked.python(script, *words, "--work", forked.run_file("runs"), "--out", str(page))
    assert made.returncode == 0, made.stderr
    told = page.read_text()
    assert "## vanishing_mlp: 10 sigmoid layers" in told
    for spec in ("none", "norm:1.0", "auto"):
        assert f"| `{spec}` | 2." in told, told  # the loss of a guess at ten classes
