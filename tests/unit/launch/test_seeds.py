"""`--seed` moves what a script draws, and nothing that it made for itself."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ...workbench import Forks, Workbench

SCRIPT = """
import json, random, sys
import numpy as np, torch
unseeded = [random.random(), np.random.random(), torch.rand(()).item()]
random.seed(1); np.random.seed(2); torch.manual_seed(3)
seeded = [random.random(), np.random.random(), torch.rand(()).item()]
fixed = torch.Generator().manual_seed(5)
own = [np.random.default_rng(4).random(), torch.rand((), generator=fixed).item()]
print(json.dumps([unseeded, seeded, own]))
"""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory, torch_forks: Forks) -> dict[str, Any]:
    bench = Workbench(tmp_path_factory.mktemp("seeds"), torch_forks)
    bench.write("draws.py", SCRIPT)

    def draws(*options: str) -> Any:
        done = bench.steadygrad("run", "-q", *options, "draws.py")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    seeds = {"plain": (), "0": ("--seed", "0"), "7": ("--seed", "7"), "8": ("--seed", "8")}
    found = {name: draws(*options) for name, options in seeds.items()}
    found["7 again"] = draws("--seed", "7")
    return found


def test_the_same_number_gives_the_same_draws(drawn: dict[str, Any]) -> None:
    assert drawn["7"] == drawn["7 again"]


def test_another_number_gives_others_from_every_generator(drawn: dict[str, Any]) -> None:
    for part in (0, 1):
        assert all(a != b for a, b in zip(drawn["7"][part], drawn["8"][part], strict=True))


def test_zero_leaves_the_script_s_own_seeds(drawn: dict[str, Any]) -> None:
    assert drawn["0"][1] == drawn["plain"][1]
    assert drawn["0"][0] != drawn["plain"][0]


def test_generators_of_its_own_are_left_alone(drawn: dict[str, Any]) -> None:
    assert drawn["7"][2] == drawn["8"][2] == drawn["plain"][2]
