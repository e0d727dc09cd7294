"""`python -m corpus.pictures`: draw into each rule's page a real run that shows it.

Pages are read in a terminal as well as in a browser, so a picture is text: the norm over
the steps on a logarithmic axis, or one bar a layer. Each names the case it was drawn from
and what `diagnose` said first; a rule that stays silent on its own case stops the script.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from cases import TUNED_SEED, Case
from faults import FAULTS
from training import run_case

import steadygrad
from steadygrad import rules
from steadygrad.robust import columns_median
from steadygrad.rules import Finding
from steadygrad.rules.evidence.view import View

WIDTH, HEIGHT = 60, 9
HEADING = "## A real run"

SHOWN: dict[str, tuple[str, str, str]] = {
    "SG101": ("nan_batch", "mlp", "curve"),
    "SG102": ("runaway_loss", "mlp", "curve"),
    "SG103": ("broken_checkpoint", "mlp", "layers"),
    "SG104": ("loss_infinite", "lstm", "curve"),
    "SG105": ("half_overflow", "mlp", "layers"),
    "SG106": ("half_underflow", "mlp", "curve"),
    "SG201": ("diverging_q", "rl", "curve"),
    "SG202": ("outliers", "mlp", "curve"),
    "SG203": ("depth_growth", "mlp", "layers"),
    "SG204": ("recurrent_radius", "rnn", "curve"),
    "SG205": ("dominant_scale", "mlp", "layers"),
    "SG301": ("deep_sigmoid", "mlp", "layers"),
    "SG302": ("dead_relu", "mlp", "layers"),
    "SG303": ("detached", "rnn", "layers"),
    "SG304": ("saturating", "mlp", "layers"),
    "SG305": ("forgetting", "rnn", "curve"),
    "SG401": ("over_clipped", "mlp", "curve"),
    "SG402": ("never_reached", "lstm", "curve"),
    "SG403": ("value_distorts", "mlp", "curve"),
    "SG404": ("before_backward", "mlp", "curve"),
    "SG405": ("after_step", "mlp", "curve"),
    "SG406": ("before_unscale", "mlp", "curve"),
    "SG407": ("per_micro_batch", "mlp", "curve"),
    "SG408": ("partly", "mlp", "layers"),
    "SG409": ("twice", "mlp", "curve"),
    "SG410": ("gradients_passed", "mlp", "curve"),
    "SG411": ("infinite_limit", "mlp", "curve"),
    "SG501": ("saturated", "mlp", "layers"),
    "SG502": ("rate_sgd", "mlp", "curve"),
    "SG503": ("scale_collapsed", "mlp", "curve"),
    "SG504": ("divided_late", "mlp", "curve"),
    "SG505": ("unnormalised", "mlp", "layers"),
}
"""Rule -> (fault, architecture, kind of picture)."""


def curve(view: View) -> list[str]:
    """Norms over the steps: ``*`` finite, ``x`` not finite, ``-`` the threshold."""
    steps = np.linspace(0, len(view) - 1, min(WIDTH, len(view))).astype(int)
    norms = np.where(view.usable, view.norm, np.nan)[steps]
    known = norms[np.isfinite(norms) & (norms > 0)]
    limits = view.threshold[steps]
    limits = limits[np.isfinite(limits) & (limits > 0)]
    everything = np.log10(np.r_[known, limits]) if known.size or limits.size else np.zeros(1)
    low, high = float(everything.min()), float(everything.max()) + 1e-9
    grid = [[" "] * len(steps) for _ in range(HEIGHT)]

    def row(value: float) -> int:
        return HEIGHT - 1 - round((np.log10(value) - low) / max(high - low, 0.1) * (HEIGHT - 1))

    for column, index in enumerate(steps):
        limit = view.threshold[index]
        if np.isfinite(limit) and limit > 0:
            grid[row(limit)][column] = "-"
        if np.isfinite(norms[column]) and norms[column] > 0:
            grid[row(norms[column])][column] = "*"
        elif view.broken[index]:
            grid[0][column] = "x"
    lines = ["".join(line) for line in grid]
    lines[0] = f"{10**high:8.1e} |{lines[0]}"
    lines[-1] = f"{10**low:8.1e} |{lines[-1]}"
    lines[1:-1] = [f"{'':8} |{line}" for line in lines[1:-1]]
    axis = f"{'':9}+{'-' * len(steps)}"
    lines = [line.rstrip() for line in lines]
    return [*lines, axis, f"{'':10}step {view.step[0]} to {view.step[-1]}; norm before clipping"]


def layers(view: View) -> list[str]:
    """Median norm of each matrix in forward order, on a logarithmic scale."""
    columns = [i for i, t in enumerate(view.tensors) if len(t.shape) > 1][:14]
    norms = columns_median(view.norms[:, columns])
    known = norms[np.isfinite(norms) & (norms > 0)]
    low = float(np.log10(known.min())) if known.size else 0.0
    high = float(np.log10(known.max())) if known.size else 1.0
    wide = max(len(view.tensors[i].name) for i in columns)
    lines = []
    for column, norm in zip(columns, norms, strict=True):
        name = view.tensors[column].name
        if np.isnan(norm):
            lines.append(f"{name:{wide}} | no finite gradient")
        elif norm == 0:
            lines.append(f"{name:{wide}} | exactly 0")
        else:
            bar = 1 + round((np.log10(norm) - low) / max(high - low, 1.0) * (WIDTH - 30))
            lines.append(f"{name:{wide}} | {'#' * bar} {norm:.2g}")
    return [*lines, f"{'':{wide}}   median gradient norm, logarithmic bars"]


def section(rule: str) -> str:
    """The text under the heading: where it is from, the picture, what was said."""
    fault, architecture, kind = SHOWN[rule]
    case = Case(fault, architecture, TUNED_SEED, FAULTS[fault].answers(architecture))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.db"
        run_case(architecture, case.seed, case.setup(), path)
        run = steadygrad.open_run(path)
        found = [f for f in steadygrad.diagnose(run) if f.id == rule]
        if not found:
            raise SystemExit(f"{rule} is silent on {case}")
        view = View(run, found[0].optimizer)
        picture = curve(view) if kind == "curve" else layers(view)
    return "\n".join([HEADING, "", "```text", *picture, "```", "", *_said(case, found[0]), ""])


def _said(case: Case, found: Finding) -> list[str]:
    return [
        f"Case `{case}` of the corpus (`corpus/`). What was said:",
        "",
        f"> {found.title}",
        *[f"> {sentence}" for sentence in found.evidence],
    ]


def main() -> None:
    """Draw every page anew, or those that are named."""
    folder = Path(rules.__file__).parent / "pages"
    for rule in sys.argv[1:] or SHOWN:
        page = folder / f"{rule}.md"
        text = re.sub(rf"{HEADING}\n.*?(?=\n## )", "", page.read_text(), flags=re.DOTALL)
        head, fix = re.split(r"\n+(?=## The fix)", text)
        page.write_text(f"{head.rstrip()}\n\n{section(rule)}\n{fix}")
        print(rule)


if __name__ == "__main__":
    main()
