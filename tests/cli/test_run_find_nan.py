"""`steadygrad run --find-nan` on scripts that know nothing of it."""

from __future__ import annotations

from steadygrad import diagnose, open_run
from steadygrad.runlog.origin import Origin
from steadygrad.vocabulary import NAN_ORIGIN

SCRIPT = """
import numpy as np
import torch

torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.1), torch.nn.Linear(8, 2))
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for step in range(8):
    batch = np.random.default_rng(step).normal(size=(6, 4)).astype(np.float32)
    if step == 5:
        batch[3] = 1e6
    shares = torch.softmax(net(torch.from_numpy(batch)), dim=1)
    loss = -torch.log(shares).mean()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
print(*(p.double().sum().item() for p in net.parameters()), torch.rand(1).item())
"""
LINE = SCRIPT.splitlines().index("    loss = -torch.log(shares).mean()") + 1


def test_the_line_is_named_and_the_script_left_alone(forked):
    forked.write("train.py", SCRIPT)
    plain = forked.python("train.py")
    found = forked.steadygrad("run", "--find-nan", "--out", "run.db", "train.py")
    assert (found.stdout, found.returncode) == (plain.stdout, 0)
    run = open_run(forked.run_file())
    events = [event for event in run.events if event.kind == NAN_ORIGIN]
    assert [event.step for event in events] == [5]
    origin = Origin.from_json(events[0].data)
    assert (origin.operation, origin.line, origin.rows) == ("torch.log", LINE, (3,))
    assert "NaN origin: The first inf of step 5 was made by torch.log" in found.stderr
    first = diagnose(run)[0]
    assert first.id == "SG101"
    assert f"train.py:{LINE}" in first.evidence[0]
    assert "clamp_min" in first.fixes[0]


def test_another_framework_is_told_so(bench):
    bench.write("plain.py", "print('no torch')")
    told = bench.steadygrad("run", "--find-nan", "plain.py")
    assert told.stdout == "no torch\n"
    assert "--find-nan works on PyTorch only" in " ".join(told.stderr.split())
