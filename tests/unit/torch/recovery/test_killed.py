"""A training that is killed goes on from its newest whole snapshot, by the command line too."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import torch

from ....workbench import Workbench

SCRIPT = """
import sys
import time

import torch

import steadygrad.torch as sg


def train(run, folder, pause=0.0):
    torch.manual_seed(0)
    layers = torch.nn.Linear(6, 300), torch.nn.Dropout(0.1), torch.nn.Linear(300, 300)
    model = torch.nn.Sequential(*layers, torch.nn.Linear(300, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    steady = sg.attach(
        optimizer, model=model, run=run, recover=f"auto+snapshots:{folder},stride=1"
    )
    first = steady.restore()
    print("begins", first, flush=True)
    for step in range(first, 40):
        inputs = torch.randn(8, 6)
        for half in inputs.split(4):  # adds up over two backward passes
            (model(half) - half.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        print("step", step, flush=True)
        time.sleep(pause)
    steady.detach()
    weights = [float(p.detach().double().sum()) for p in model.parameters()]
    print("ends", weights, flush=True)
    return weights


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(sys.argv[1], sys.argv[2], float(sys.argv[3]))
"""


def test_a_killed_training_that_is_resumed_ends_as_if_it_had_not_been(
    forked: Workbench, tmp_path: Path
) -> None:
    name = forked.write("train.py", SCRIPT)
    first = [sys.executable, name, "first.db", "snapshots", "0.02"]
    with subprocess.Popen(
        first, cwd=forked.folder, env=forked.environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line == "step 25\n":
                process.kill()  # a snapshot is under way at every step
                break
    again = forked.steadygrad("run", "--resume", "first.db", name, "second.db", "snapshots", "0")
    assert again.returncode == 0, again.stderr
    lines = again.stdout.splitlines()
    begins = [int(line.split()[1]) for line in lines if line.startswith("begins")]
    assert begins
    assert 0 < begins[0] <= 26
    ends = [line for line in lines if line.startswith("ends")]
    train = runpy.run_path(forked.run_file(name))["train"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = train(tmp_path / "whole.db", tmp_path / "whole")
    finally:
        torch.set_num_threads(threads)
    assert ends == [f"ends {whole}"]
