"""The Python in docs/run-file.md and docs/loggers.md runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import steadygrad.torch as sg
from steadygrad.runlog import open_run
from steadygrad.sinks import record

DOCS = Path(__file__).parents[3] / "docs"


def blocks(name: str) -> list[str]:
    found = re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(), re.DOTALL)
    assert found
    return found


def train(run: object) -> sg.Steady:
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(4)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    steady = sg.attach(optimizer, clip="norm:1.0", model=model, run=run)
    for _ in range(8):
        optimizer.zero_grad()
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
    return steady


def test_the_run_file_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train("run.db").detach()
    reading, slicing, writing = blocks("run-file.md")
    names: dict[str, object] = {}
    exec(reading, names)
    assert len(names["run"]) == 8
    exec(slicing, names)
    Path("run.db").unlink()
    exec(writing, {})
    assert open_run("run.db").steps.norm.tolist() == [5.0]


def test_the_loggers_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, code in enumerate(blocks("loggers.md")):
        code = code.replace('"run.db"', f'"run{number}.db"')
        if "sg.attach(" in code:
            model = torch.nn.Linear(2, 2)
            names = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
        else:
            names = {"record": record}
        exec(code, names)
        if "run" in names:
            with names["run"] as writer:
                train(writer).detach()
            assert len(open_run(f"run{number}.db")) == 8
    assert list((tmp_path / "logs").glob("events.out.tfevents.*"))
