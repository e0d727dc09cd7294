"""A PyTorch script under `steadygrad run` computes bit for bit what it would have computed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import steadygrad

Same = Callable[[Any], Any]

TRAIN = """
import copy, hashlib, os, pickle, sys
os.environ["OMP_NUM_THREADS"] = "2"
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(3)
inputs, labels = torch.randn(96, 8), torch.randint(0, 3, (96,))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 3)
        self.body = nn.GRU(8, 16, batch_first=True)
        self.drop = nn.Dropout(0.3)
    def forward(self, x):
        return self.head(self.drop(self.body(x[:, None])[0][:, -1]))

def fit(net, optimizer, clip=None, scaler=None, schedule=None):
    loader = DataLoader(TensorDataset(inputs, labels), 24, shuffle=True)
    for epoch in range(3):
        net.train()
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), y)
            if scaler:
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
            else:
                loss.backward()
            if clip:
                print(repr(clip(net)))
            scaler.step(optimizer) if scaler else optimizer.step()
            if scaler:
                scaler.update()
            print(loss.item())
        if schedule:
            schedule.step()
        net.eval()
        with torch.no_grad():
            print("eval", nn.functional.cross_entropy(net(inputs), labels).item())

def main():
    first, second = Net(), copy.deepcopy(Net())
    adam = torch.optim.AdamW(first.parameters(), lr=1e-2)
    plan = torch.optim.lr_scheduler.StepLR(adam, 1, 0.5)
    fit(first, adam, lambda n: clip_grad_norm_(n.parameters(), 0.3), schedule=plan)
    fit(second, torch.optim.SGD(second.parameters(), lr=0.1, momentum=0.9),
        lambda n: clip_grad_value_(n.parameters(), 0.01))
    third = torch.compile(Net(), backend="aot_eager")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    fit(third, torch.optim.RMSprop(third.parameters(), lr=1e-3), scaler=scaler)
    fourth = Net()
    search = torch.optim.LBFGS(fourth.parameters(), max_iter=4)
    def closure():
        search.zero_grad()
        loss = nn.functional.cross_entropy(fourth(inputs), labels)
        loss.backward()
        return loss
    for _ in range(3):
        print(search.step(closure).item())
    clone = pickle.loads(pickle.dumps(adam))
    print(sorted(vars(clone)), sorted(vars(copy.deepcopy(adam))), torch.get_num_threads())
    weights = [p.detach() for net in (first, second, third, fourth) for p in net.parameters()]
    torch.save(weights, sys.argv[1])
    print(hashlib.sha256(b"".join(w.numpy().tobytes() for w in weights)).hexdigest())
    print(torch.rand(1).item())

if __name__ == "__main__":
    main()
"""


def test_weights_output_and_random_numbers_are_the_plain_runs(bench: Any, same: Same) -> None:
    bench.write("train.py", TRAIN)
    plain = bench.python("train.py", "plain.pt")
    observed = bench.steadygrad(
        "run", "-q", "--out", "run.db", "train.py", "observed.pt", "--api-key", "s3cret"
    )
    same((plain, observed))
    assert plain.returncode == 0, plain.stderr
    assert plain.stdout.splitlines()[-3].endswith(" 2")  # the script's own OMP_NUM_THREADS
    one, other = Path(bench.run_file("plain.pt")), Path(bench.run_file("observed.pt"))
    assert _weights(one) == _weights(other)

    run = steadygrad.open_run(bench.run_file())
    assert [o["class"] for o in run.info["optimizers"]] == ["AdamW", "SGD", "RMSprop", "LBFGS"]
    assert [int((run.steps["optimizer"] == i).sum()) for i in range(4)] == [12, 12, 12, 3]
    assert {"head.weight", "body.weight_hh_l0"} <= {t.name.split(".", 1)[-1] for t in run.tensors}
    losses = [line for line in plain.stdout.splitlines() if line[0] in "0123456789"]
    assert run.steps.loss[:12].tolist() == pytest.approx([float(x) for x in losses[:12]], rel=1e-6)
    by_value = run.steps[run.steps["optimizer"] == 1]
    assert by_value["threshold"].tolist() == [0.01] * 12
    assert (by_value["action"] == "clip").all()
    scaled = run.steps[run.steps["optimizer"] == 2]
    assert (scaled["loss_scale"] > 1).all()

    text = json.dumps(run.info)
    assert "s3cret" not in text
    assert run.info["command"] == ["python", "train.py", "***", "--api-key", "***"]
    assert (run.info["seed"], run.info["exit"], run.info["observed_by"]) == (3, "ok", "run")
    assert bench.environment["PATH"] not in text
    assert 0 < run.info["overhead_seconds"] < run.info["wall_seconds"]


def _weights(path: Path) -> list[bytes]:
    import torch

    return [w.numpy().tobytes() for w in torch.load(path)]


DIVERGES = """
import sys, torch
torch.manual_seed(0)
net = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(net.parameters(), lr=float(sys.argv[1]))
for step in range(60):
    x = torch.randn(16, 4)
    optimizer.zero_grad()
    loss = (net(x) - x.sum(1, keepdim=True)).pow(2).mean()
    loss.backward()
    if len(sys.argv) > 2:
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1e9)
    optimizer.step()
print("finite", bool(net.weight.isfinite().all()))
if len(sys.argv) > 2:
    raise SystemExit(int(sys.argv[2]))
raise ValueError("the script's own end")
"""


def test_the_last_words_name_what_broke_and_what_to_type(forked: Any) -> None:
    forked.write("diverges.py", DIVERGES)
    plain = forked.python("diverges.py", "1e4")
    told = forked.steadygrad("run", "--out", "run.db", "diverges.py", "1e4")
    assert (plain.returncode, plain.stdout) == (1, "finite False\n")
    assert (told.returncode, told.stdout) == (1, "finite False\n")
    assert told.stderr.startswith(plain.stderr)  # the traceback, then our words
    words = told.stderr.removeprefix(plain.stderr)
    assert words.startswith("steadygrad: ")
    findings = steadygrad.diagnose(forked.run_file())
    assert findings[0].severity == "error"
    for expected in (findings[0].id, "fix:", "Observing ", "Next: steadygrad report run.db"):
        assert expected in words
    assert steadygrad.open_run(forked.run_file()).info["exit"] == "ValueError"


def test_a_spec_replaces_the_scripts_own_clipping(forked: Any) -> None:
    forked.write("diverges.py", DIVERGES)
    told = forked.steadygrad(
        "run", "--out", "run.db", "--clip", "norm:0.1", "diverges.py", "0.1", "3"
    )
    assert (told.returncode, told.stdout) == (3, "finite True\n")
    run = steadygrad.open_run(forked.run_file())
    assert set(run.steps.threshold.tolist()) == {0.1}
    assert (run.steps.action == "clip").any()
    assert (run.info["policy"], run.info["exit"]) == ("norm:0.1", 3)
    assert any(w in told.stderr for w in ("threshold: ", "No threshold", "As insurance"))


CHILDREN = """
import os, sys
import torch
import torch.multiprocessing as mp
from torch.utils.data import DataLoader

def train(rank, *inherited):
    torch.manual_seed(rank)
    net = inherited[0] if inherited else torch.nn.Linear(4, 1)
    optimizer = inherited[1] if inherited else torch.optim.SGD(net.parameters(), lr=0.1)
    workers = {"num_workers": 1, "multiprocessing_context": "fork"}
    for x in DataLoader(torch.ones(24, 4), 4, **(workers if rank == 0 else {})):
        optimizer.zero_grad()
        net(x).pow(2).mean().backward()
        optimizer.step()
    print(rank, net.weight.sum().item(), flush=True)
    return net, optimizer

if __name__ == "__main__":
    if sys.argv[1] == "spawn":
        mp.spawn(train, nprocs=1)
    else:
        ours = train(1)
        if os.fork() == 0:
            train(2)
            train(3, *ours)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
        os._exit(7)
"""


def test_processes_that_the_script_starts_are_observed_too(forked: Any, same: Same) -> None:
    forked.write("children.py", CHILDREN)
    plain = forked.python("children.py", "spawn")
    told = forked.steadygrad("run", "--out", "run.db", "children.py", "spawn")
    assert (told.stdout, told.returncode) == (plain.stdout, 0)
    assert "run-SpawnProcess-1.db" in told.stderr
    assert not Path(forked.run_file()).exists()  # the parent took no step
    run = steadygrad.open_run(forked.run_file("run-SpawnProcess-1.db"))
    assert len(run.steps) == 6
    assert run.info["process"] == "SpawnProcess-1"


def test_after_a_fork_and_os_exit_both_run_files_are_whole(forked: Any, same: Same) -> None:
    forked.write("children.py", CHILDREN)
    assert same(forked.both("children.py", "fork")).returncode == 7
    files = sorted(forked.folder.glob("run*.db"))
    assert len(files) == 2
    assert sorted(len(steadygrad.open_run(file).steps) for file in files) == [6, 12]


def test_a_run_file_that_cannot_be_written_does_not_stop_the_script(forked: Any) -> None:
    forked.write("diverges.py", DIVERGES)
    forked.write("a_file", "")
    done = forked.steadygrad("run", "--out", "a_file/run.db", "diverges.py", "0.1", "0")
    assert (done.returncode, done.stdout) == (0, "finite True\n")
    assert "a_file/run.db" in done.stderr


ATTACHES = """
import torch, steadygrad.torch as sg

torch.manual_seed(0)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
steady = sg.attach(optimizer, clip="norm:0.5", model=model, run="own.db")
for step in range(4):
    loss = model(torch.full((2, 4), 1.0 + step)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(steady.last.action, steady.last.loss == loss.item())
"""


def test_an_optimizer_that_the_script_attaches_is_left_to_it(forked: Any) -> None:
    forked.write("attaches.py", ATTACHES)
    told = forked.steadygrad("run", "--out", "run.db", "attaches.py")
    assert (told.returncode, told.stdout) == (0, "clip True\n")
    words = " ".join(told.stderr.split())
    assert "0 steps seen" in words
    assert words.count("the script attaches steadygrad to its SGD itself") == 2
    assert "Weights that are made anew" not in words
    assert "fault" not in told.stderr
    assert len(steadygrad.open_run(forked.run_file("own.db")).steps) == 4


AGC = """
import torch

def adaptive_clip_grad(parameters, clip_factor=0.01, eps=1e-3, norm_type=2.0):
    for p in parameters:
        most = max(p.detach().norm(norm_type).item(), eps) * clip_factor
        p.grad.detach().mul_(min(1.0, most / p.grad.norm(norm_type).item()))
"""

DISPATCH = """
import torch
from timm.utils.agc import adaptive_clip_grad

def dispatch_clip_grad(parameters, value, mode="norm", norm_type=2.0):
    if mode == "norm":
        torch.nn.utils.clip_grad_norm_(parameters, value, norm_type=norm_type)
    elif mode == "value":
        torch.nn.utils.clip_grad_value_(parameters, value)
    else:
        adaptive_clip_grad(parameters, value, norm_type=norm_type)
"""

DISPATCHES = """
import torch
from timm.utils import dispatch_clip_grad

weight = torch.nn.Parameter(torch.full((4,), 5.0))
optimizer = torch.optim.SGD([weight], lr=1.0)
for mode, value in ("norm", 2.0), ("value", 0.5), ("agc", 0.1):
    optimizer.zero_grad()
    (weight * 2).sum().backward()
    dispatch_clip_grad(iter([weight]), value, mode=mode)
    optimizer.step()
"""


def test_a_librarys_dispatched_clip_is_seen_in_each_of_its_modes(forked: Any) -> None:
    forked.write("timm/__init__.py", "")
    forked.write("timm/utils/__init__.py", "from timm.utils.clip_grad import dispatch_clip_grad")
    forked.write("timm/utils/agc.py", AGC)
    forked.write("timm/utils/clip_grad.py", DISPATCH)
    forked.write("dispatches.py", DISPATCHES)
    told = forked.steadygrad("run", "-q", "--out", "run.db", "dispatches.py")
    assert told.returncode == 0, told.stderr
    run = steadygrad.open_run(forked.run_file())
    assert "troubles" not in run.info
    assert run.steps.norm.tolist() == [4.0] * 3
    assert run.steps.threshold.tolist() == [2.0, 0.5, float("inf")]
    of_third = 0.1 * (5 - 1 - 0.5) * 2 / 4  # weights of 3.5 by then, four of them
    assert run.steps.coef.tolist() == pytest.approx([0.5, 0.25, of_third], rel=1e-5)
    assert run.steps.action.tolist() == ["clip"] * 3
