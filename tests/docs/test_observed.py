"""Snippets that train by PyTorch: the same bits and output plainly and under `steadygrad run`.

And what is recorded, by `run` or by a handle of the snippet's own, is the norm before clipping.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import steadygrad

from ..workbench import Process, Workbench
from .pages import PAGES, ROOT, blocks

TESTS = Path(__file__).parents[1]
ELSEWHERE = re.compile(
    r"shell\(|import (?:keras|tensorflow|jax|optax|pandas|duckdb|lightning)|from (?:transformers"
    r"|lightning|accelerate)"
)
"""Scripts that start a process or load what takes seconds; other tests observe such ones."""


def scripts_of(page: Path) -> dict[str, str]:
    """The Python of a page, as one script, and each of the files that it has its readers write."""
    run = [b for b in blocks(page) if b.language == "python" and b.is_run]
    name = str(page.relative_to(ROOT))
    found = {f"{name}:{block.line}": block.code for block in run if block.title}
    found[name] = "\n".join(f"{b.setup}\n{b.code}" for b in run if not b.title)
    return {name: shortened(code) for name, code in found.items()}


def shortened(code: str) -> str:
    """Code whose loops end after 22 turns, or after the last step of which it speaks.

    Example:
        >>> shortened("for step in range(300): a(step == 60)")
        'for step in range(62): a(step == 60)'
    """
    turns = max([20, *map(int, re.findall(r"step == (\d+)", code))]) + 2
    return re.sub(r"range\((\d+)\)", lambda m: f"range({min(int(m[1]), turns)})", code)


SCRIPTS = {
    name: code
    for page in PAGES
    for name, code in scripts_of(page).items()
    if "import torch" in code and ".step()" in code and not ELSEWHERE.search(code)
}


def observed(forked: Workbench, code: str, *options: str) -> tuple[Process, Process, Any, Any]:
    """The script plainly and under `run`, and what it has told of each."""
    done, told = [], []
    for name, plain in (("plain", True), ("run", False)):
        first = f"import sys; sys.path.insert(1, {str(TESTS)!r}); import norms; norms.tell({plain})"
        forked.write(f"{name}/script.py", f"{first}\n{code}")
        run = ["-m", "steadygrad", "run", "-q", "--out", "seen.db", *options]
        process = forked.python(*([] if plain else run), "script.py", cwd=name)
        process.stderr = process.stderr.replace(f"{forked.folder}/{name}", "")
        done.append(process)
        assert done[-1].returncode == 0, done[-1].stderr
        told.append(json.loads((forked.folder / name / "told.json").read_text()))
    return done[0], done[1], told[0], told[1]


def without_times(text: str) -> str:
    return re.sub(r"time=[\d.]+", "", text)


def test_most_snippets_that_train_are_among_these() -> None:
    assert len(SCRIPTS) >= 14, sorted(SCRIPTS)
    assert {"README.md", "docs/guide/nan.md", "docs/torch.md"} <= set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_snippet_does_the_same_observed_and_its_norms_are_those_before_the_clip(
    name: str, forked: Workbench
) -> None:
    plain, seen, told, other = observed(forked, SCRIPTS[name])
    assert other["bits"] == told["bits"]
    assert without_times(seen.stdout) == without_times(plain.stdout)
    assert seen.stderr == plain.stderr
    recorded, norms = np.array(told["attached"]).reshape(-1, 2).T
    np.testing.assert_allclose(recorded, norms, rtol=1e-5)
    assert len(norms) + len(told["norms"]) > 0
    if told["norms"]:
        steps = steadygrad.open_run(forked.run_file("run/seen.db")).steps
        np.testing.assert_allclose(steps.norm, told["norms"], rtol=1e-5)


def test_a_clip_shows_in_the_bits_and_not_in_the_norms(forked: Workbench) -> None:
    code = SCRIPTS["README.md:14"]
    _, _, told, other = observed(forked, code, "--clip", "norm:0.001")
    assert other["bits"] != told["bits"]
    steps = steadygrad.open_run(forked.run_file("run/seen.db")).steps
    assert steps.norm[0] == pytest.approx(told["norms"][0], rel=1e-5)
    assert steps.norm[-1] != pytest.approx(told["norms"][-1], rel=1e-5)
