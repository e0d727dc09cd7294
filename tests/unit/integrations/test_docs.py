"""The loops in docs/trainers.md run as they stand there; its one line of each trainer is real."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import steadygrad

PAGE = (Path(__file__).parents[3] / "docs" / "trainers.md").read_text()


def loops() -> list[str]:
    part = PAGE[PAGE.index("## Plain and torchtitan-style loops") :]
    return re.findall(r"```python\n(.*?)```", part, re.DOTALL)


def test_the_loops_train_and_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    parts = [torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh()), torch.nn.Linear(4, 1)]
    inputs = torch.randn(8, 4)
    batches = [(inputs, 30 * inputs.sum(1, keepdim=True))] * 5
    plain, titan = loops()
    exec(
        plain,
        {
            "torch": torch,
            "model": parts[1],
            "optimizer": torch.optim.SGD(parts[1].parameters(), lr=0.1),
            "batches": batches,
        },
    )
    run = steadygrad.open_run("run.db")
    assert run.steps.action.tolist() == ["clip"] * 5
    exec(
        titan,
        {
            "torch": torch,
            "model_parts": parts,
            "optimizers": [torch.optim.SGD(part.parameters(), lr=0.1) for part in parts],
            "batches": batches,
        },
    )
    run = steadygrad.open_run("parts.db")
    first, second = (run.steps.norm[run.steps.optimizer == index] for index in (0, 1))
    assert len(first) == 5
    assert (first**2 + second**2) == pytest.approx([1.0] * 5)  # one norm over both parts


def test_the_page_names_the_versions_that_the_tests_use() -> None:
    from importlib.metadata import version

    said = PAGE[PAGE.index("Versions tested") : PAGE.index("## Without a line")]
    names = ("transformers", "TRL", "accelerate", "Lightning", "DeepSpeed", "torch")
    for name in names:
        told = re.search(rf"{name} (\d+(?:\.\d+)+)", said)
        assert told is not None, name
        assert f"{version(name.lower())}.".startswith(f"{told[1]}."), name
