"""Scripts that do odd things: plain and under `steadygrad run`, they do the same.

Standard output, standard error (tracebacks that the script itself prints included) and the
exit code are compared. What cannot be mended is named in docs/run.md.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from steadygrad.runlog import open_run

TRAINING = """import torch, traceback
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
opt = torch.optim.SGD(model.parameters(), lr=0.1)
x = torch.randn(16, 4)
def step():
    opt.zero_grad()
    loss = (model(x) ** 2).mean()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    opt.step()
    return loss.item()
step()
"""
CLIP = "nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)\n"
SCRIPTS = {
    "backward raises": "torch.ones(1).backward()",
    "backward raises and is caught": """
try:
    torch.ones(1).backward()
except RuntimeError:
    traceback.print_exc()
print(step())
""",
    "backward twice": "loss = model(x).sum()\nloss.backward()\nloss.backward()",
    "a hook raises": """
def hook(grad):
    raise RuntimeError("in hook")
model[0].weight.register_hook(hook)
step()
""",
    "a hook leaves": "model[0].weight.register_hook(lambda g: exit(3))\nstep()",
    "a custom backward raises": """
class F(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x * 2
    @staticmethod
    def backward(ctx, grad): raise RuntimeError("in F")
F.apply(model(x)).sum().backward()
""",
    "a clip raises": "model(x * float('inf')).sum().backward()\n" + CLIP,
    "a clip raises and is caught": "model(x * float('inf')).sum().backward()\ntry:\n    "
    + CLIP
    + "except RuntimeError:\n    traceback.print_exc()\nprint(opt.param_groups[0]['lr'])",
    "a clip is misused": "nn.utils.clip_grad_norm_()",
    "a clip of a number": "nn.utils.clip_grad_norm_(5, 1.0)",
    "a clip by a word": "nn.utils.clip_grad_value_(model.parameters(), 'a')",
    "a clip of nothing": """
import warnings
warnings.simplefilter("always")
nn.utils.clip_grad_norm_((p for p in []), 1.0)
nn.utils.clip_grad_norm(model.parameters(), 1.0)
""",
    "a step raises": "opt.param_groups[0]['lr'] = 'a'\nstep()",
    "a closure raises and is caught": """
def closure():
    opt.zero_grad()
    raise RuntimeError("in closure")
try:
    opt.step(closure)
except RuntimeError:
    traceback.print_exc()
print(step())
""",
    "a scaler raises": "torch.amp.GradScaler('cpu').step(opt)",
    "a chain of exceptions": """
try:
    try:
        torch.ones(1).backward()
    except RuntimeError as error:
        raise ValueError("x") from error
except ValueError:
    raise KeyError("y")
""",
    "an excepthook of its own": """
import sys
sys.excepthook = lambda k, e, t: print([f.name for f in traceback.extract_tb(t)])
torch.ones(1).backward()
""",
    "a logger": """
import logging
try:
    torch.ones(1).backward()
except RuntimeError:
    logging.exception("oh")
""",
    "a thread fails": """
import threading
thread = threading.Thread(target=lambda: torch.ones(1).backward())
thread.start(); thread.join()
print(step(), threading.active_count(), threading.enumerate()[0].name)
""",
    "the functions of torch": """
import inspect, pickle
for f in (torch.autograd.backward, nn.utils.clip_grad_norm_, torch.amp.GradScaler.step):
    print(inspect.signature(f), f.__module__, inspect.getsourcefile(f), len(inspect.getsource(f)))
print(pickle.loads(pickle.dumps(nn.utils.clip_grad_norm_)) is nn.utils.clip_grad_norm_)
""",
    "pickles of model and optimizer": """
import copy, hashlib, pickle
for number in range(20):
    step()
    print(hashlib.sha256(pickle.dumps((model, opt))).hexdigest())
    copied = copy.deepcopy(opt)
    print(len(copied._optimizer_step_pre_hooks), sorted(vars(copied)))
""",
    "steps at exit": """
import atexit
atexit.register(lambda: [print(step()) for _ in range(3)])
""",
    "a function over ours": """
original = torch.autograd.backward
def mine(*args, **kwargs):
    print("mine")
    return original(*args, **kwargs)
torch.autograd.backward = mine
print(step())
""",
    "a scripted module": """
model = torch.jit.script(model)
opt = torch.optim.Adam(model.parameters())
print([step() for _ in range(3)])
""",
    "optimizers inside backward": """
each = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}
def hook(p):
    nn.utils.clip_grad_norm_([p], 0.1)
    each[p].step(); each[p].zero_grad()
for p in model.parameters():
    p.register_post_accumulate_grad_hook(hook)
for _ in range(5):
    (model(x) ** 2).mean().backward()
print(sum(p.double().sum().item() for p in model.parameters()))
""",
    "children of an executor": """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
def work(count):
    return [step() for _ in range(count)]
with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
    print(list(pool.map(work, [2])))
print(step())
""",
    "generators of random numbers": "print([step() for _ in range(20)], torch.rand(3).tolist())",
}


@pytest.fixture(scope="module")
def forks() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(Path(__file__).with_name("forks.py"))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    yield process
    process.communicate(timeout=60)


def both(forks: subprocess.Popen[str], script: Path) -> tuple[list[str], list[str]]:
    """Exit code, standard output and error of the script, plain and observed."""
    into: IO[str] | None = forks.stdin
    answers: IO[str] | None = forks.stdout
    assert into is not None
    assert answers is not None
    print(script, file=into, flush=True)
    codes = json.loads(answers.readline())
    told = []
    for code, kind in zip(codes, ("plain", "observed"), strict=True):
        streams = [script.with_suffix(f".{kind}.{name}").read_text() for name in ("out", "err")]
        told.append([str(code), *(re.sub(r"0x[0-9a-f]+|ForkProcess-\d+", "", s) for s in streams)])
    return told[0], told[1]


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_odd_script_does_the_same(
    forks: subprocess.Popen[str], tmp_path: Path, name: str
) -> None:
    script = tmp_path / "odd.py"
    script.write_text(TRAINING + SCRIPTS[name])
    plain, observed = both(forks, script)
    assert observed == plain


def test_steps_at_exit_are_recorded(forks: subprocess.Popen[str], tmp_path: Path) -> None:
    script = tmp_path / "odd.py"
    # the script's exit function is older than the run file
    script.write_text("import atexit\natexit.register(lambda: [step(), step()])\n" + TRAINING)
    both(forks, script)
    assert len(open_run(tmp_path / "odd.db").steps) == 3


def test_the_comparison_can_fail(forks: subprocess.Popen[str], tmp_path: Path) -> None:
    script = tmp_path / "odd.py"
    script.write_text("import sys\nprint([m for m in sys.modules if 'steadygrad.launch.s' in m])")
    plain, observed = both(forks, script)
    assert observed != plain
