"""`python -m benchmarks.lint`: do the source and the run agree, and does `--fix` help?

For each check that can mend and has a run-time rule: one mistake is made in a sound script, the
script is run, mended by the check's own fixes, and run again. The rule must speak of the first run
and be silent on the second.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from corpus import mutations
from steadygrad.lint import CHECKS, lint_text, selected
from steadygrad.lint.rewriting import apply
from steadygrad.rules import REGISTRY, diagnose

PLAIN = """\
import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(8, 16)
        self.layers = nn.ModuleList([nn.Linear(16, 16) for _ in range(2)])
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = x + layer(x).tanh()
        return self.head(x)


model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for step in range(80):
    x = torch.randn(16, 8)
    y = x[:, :4].argmax(1)
    optimizer.zero_grad()
    logits = model(x)
    loss = F.cross_entropy(logits, y)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()
"""

SCALED = (
    PLAIN.replace("for step", "scaler = torch.amp.GradScaler('cpu', init_scale=1024.0)\nfor step")
    .replace(
        "    loss.backward()\n",
        "    scaler.scale(loss).backward()\n    scaler.unscale_(optimizer)\n",
    )
    .replace("    optimizer.step()\n", "    scaler.step(optimizer)\n    scaler.update()\n")
)

ACCUMULATED = (
    PLAIN.replace("    optimizer.zero_grad()\n", "")
    .replace("cross_entropy(logits, y)", "cross_entropy(logits, y) / 4")
    .replace(
        "    torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)\n    optimizer.step()\n",
        "    if (step + 1) % 4 == 0:\n"
        "        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)\n"
        "        optimizer.step()\n"
        "        optimizer.zero_grad()\n",
    )
)


def mutant(check: str) -> str | None:
    """A script with one mistake of a check, in the first style that it can be made in."""
    for script in (PLAIN, SCALED, ACCUMULATED):
        for id, operator in mutations.OPERATORS:
            text = operator(script) if id == check else None
            if text is not None:
                return str(text).replace("Linear(8, 8)", "Linear(16, 4)")
    return None


def mended(check: str, text: str) -> str:
    """The script after the check's own fixes."""
    for _ in range(5):
        fixes = [d.fix for d in lint_text(text, selected([check])) if d.fix]
        if not fixes:
            break
        text, _ = apply(text, fixes[:1])
    return text


def rules_that_speak(text: str) -> set[str]:
    """The ids of the findings of a run of a script."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "train.py").write_text(text)
        command = [sys.executable, "-m", "steadygrad", "run", "-q", "--out", "run.db", "train.py"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        return {finding.id for finding in diagnose(Path(folder, "run.db"))}


def main() -> None:
    """Print one line a check."""
    for check in (c for c in CHECKS.values() if c.fixable and c.id in REGISTRY):
        text = mutant(check.id)
        if text is not None:
            speaks = check.id in rules_that_speak(text)
            silent = check.id not in rules_that_speak(mended(check.id, text))
            print(f"{check.id}  run names it: {speaks}  silent after --fix: {silent}", flush=True)


if __name__ == "__main__":
    main()
