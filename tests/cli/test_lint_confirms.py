"""A run and the source agree: mutants of one script, linted and run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from steadygrad.lint import CHECKS, lint_text
from steadygrad.rules import diagnose

from ..workbench import Workbench

sys.path.append(str(Path(__file__).parents[2] / "corpus"))

import mutations

SCRIPT = """\
import torch
import torch.nn.functional as F

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for step in range(60):
    x = torch.randn(16, 8)
    y = x[:, :4].argmax(1)
    optimizer.zero_grad()
    logits = model(x)
    loss = F.cross_entropy(logits, y)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()
"""


@pytest.mark.parametrize("check", ["SG404", "SG410", "SG602", "SG606"])
def test_the_run_and_the_source_name_the_same_fault(forked: Workbench, check: str) -> None:
    operator = next(operator for id, operator in mutations.OPERATORS if id == check)
    mutant = operator(SCRIPT)
    assert mutant is not None
    [line] = [d.line for d in lint_text(mutant, CHECKS.values()) if d.id == check]
    forked.write("train.py", mutant)
    done = forked.steadygrad("run", "--out", "run.db", "train.py")
    assert done.returncode == 0, done.stderr
    findings = {f.id: f for f in diagnose(forked.run_file())}
    assert check in findings
    sentence = f"The source shows it too: train.py:{line} (steadygrad lint)."
    assert sentence in findings[check].evidence
    assert "source shows it too" in " ".join(done.stderr.split())
