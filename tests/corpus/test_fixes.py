"""The first fix that each rule shows, applied to the case that shows it: the fault is gone.

What is printed is run as it stands: as code before the training, for each layer, in place of the
step, or as the clip that it attaches. A case that needs words alone (where to look) is not here.
"""

from __future__ import annotations

import contextlib
import copy
import math
import re
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import Task, digits
from faults import FAULTS, in_order
from pictures import SHOWN
from torch import nn
from torch.nn import functional as F
from training import Script, Setup, run_case

import steadygrad
from steadygrad import rules
from steadygrad.rules import Finding
from steadygrad.torch import attach

SEED = 7
Mend = Callable[[Setup, str], Setup]
NAMES: dict[str, Any] = {"torch": torch, "nn": nn, "F": F, "math": math}


def findings(architecture: str, setup: Setup, path: Path) -> list[Finding]:
    run_case(architecture, SEED, setup, path)
    return steadygrad.diagnose(path)


def then(setup: Setup, build: Callable[[Task], None]) -> Setup:
    """The setup, with something done to the model once it is built."""

    def both(task: Task) -> None:
        setup.build(task)
        build(task)

    return replace(setup, build=both)


def on_the_model(setup: Setup, fix: str) -> Setup:
    """Code that names ``model``, and so knows where it is."""
    return then(setup, lambda task: exec(fix, {**NAMES, "model": task.model}))


def on_each_layer(setup: Setup, fix: str) -> Setup:
    """Code that names ``layer``; what it makes of that name, and of ``act``, takes its place."""

    def build(task: Task) -> None:
        for parent in list(task.model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear | nn.Conv2d):
                    wide = child.weight.shape[0]
                    x = torch.zeros(2, wide)
                    scope = {**NAMES, "layer": child, "n": wide, "x": x, "mean": 0.0, "std": 1.0}
                    exec(fix, scope)
                    setattr(parent, name, scope["layer"])
                    acts[0] = scope.get("act")
                elif isinstance(child, nn.ReLU) and acts[0] is not None:
                    setattr(parent, name, acts[0])

    acts: list[Any] = [None]
    return then(setup, build)


def with_residuals(setup: Setup, fix: str) -> Setup:
    """Each hidden layer as the fix makes it, around a shortcut where its sides are as wide."""
    first, *others = fix.splitlines()

    class Block(nn.Module):
        def __init__(self, wide: int) -> None:
            super().__init__()
            scope = {**NAMES, "n": wide}
            exec("\n".join(others), scope)
            self.block = scope["layer"]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scope = {"x": x, "block": self.block}
            exec(first, scope)
            return scope["x"]

    def build(task: Task) -> None:
        sizes = [m for m in task.model if isinstance(m, nn.Linear)]
        hidden = [Block(m.out_features) for m in sizes[1:-1]]
        whole = nn.Sequential(sizes[0], nn.ReLU(), *hidden, sizes[-1])
        for name, child in list(task.model.named_children()):
            task.model.register_module(name, nn.Identity() if name != "0" else whole)
            del child

    return then(setup, build)


def on_the_optimizer(setup: Setup, fix: str) -> Setup:
    """Code that names ``optimizer``, before the first step."""
    inner = setup.script or in_order

    def script(s: Script, player: Any, optimizer: torch.optim.Optimizer, step: int) -> None:
        if step == 0:
            exec(fix, {**NAMES, "optimizer": optimizer, "model": player.module})
        inner(s, player, optimizer, step)

    return replace(setup, script=script)


def as_the_step(setup: Setup, fix: str) -> Setup:
    """Code that is a step: it calls zero_grad, backward and step in its own order."""

    def script(s: Script, player: Any, optimizer: torch.optim.Optimizer, step: int) -> None:
        loss = player.loss(s.batch(step))
        seen = types.SimpleNamespace(backward=lambda: s.backward(loss))
        stepper = types.SimpleNamespace(
            zero_grad=optimizer.zero_grad, step=lambda: s.step(optimizer)
        )
        exec(fix, {"loss": seen, "optimizer": stepper})

    return replace(setup, script=script)


def as_the_backward(setup: Setup, fix: str) -> Setup:
    """Code that divides the loss of one of five passes."""

    class Loss:
        def __init__(self, value: torch.Tensor, script: Script) -> None:
            self.value, self.script = value, script

        def __truediv__(self, by: float) -> Loss:
            return Loss(self.value / by, self.script)

        def backward(self) -> None:
            self.script.backward(self.value)

    def script(s: Script, player: Any, optimizer: torch.optim.Optimizer, step: int) -> None:
        optimizer.zero_grad()
        for _ in range(5):
            exec(fix, {"loss": Loss(player.loss(s.batch(step)), s)})
        s.step(optimizer)

    return replace(setup, script=script)


def as_the_clip(setup: Setup, fix: str) -> Setup:
    """Code that attaches a clip; the script's own is taken out."""
    specs: list[str] = []
    module = types.ModuleType("steadygrad.torch")
    module.attach = lambda optimizer, clip, model: specs.append(clip)  # type: ignore[attr-defined]
    module.get_total_norm = lambda gradients: None  # type: ignore[attr-defined]
    real, sys.modules["steadygrad.torch"] = sys.modules["steadygrad.torch"], module
    package = sys.modules["steadygrad"]
    before = package.torch  # type: ignore[attr-defined]
    try:
        package.torch = module  # type: ignore[attr-defined]
        exec(fix, {"optimizer": None, "model": nn.Linear(1, 1)})
    finally:
        sys.modules["steadygrad.torch"] = real
        package.torch = before  # type: ignore[attr-defined]
    return replace(setup, script=None, clip=specs[0] if specs else "none")


def on_the_batch(setup: Setup, fix: str) -> Setup:
    """Code that names ``x`` and ``x_train``."""

    def batch(step: int, b: Any) -> Any:
        x = setup.batch(step, b)[0]
        scope = {"x": x, "x_train": x}
        exec(fix, scope)
        return (scope["x"], *b[1:])

    return replace(setup, batch=batch)


def on_the_loss(setup: Setup, fix: str) -> Setup:
    """Code that makes ``loss`` of ``model``, ``x`` and ``y``, or changes ``y`` or ``target``."""

    def build(task: Task) -> None:
        model, labels = task.model, torch.arange(10.0)
        raw = 3e6 + 1e6 * (labels / 4.5 - 1)

        def loss(b: Any) -> torch.Tensor:
            scope = {**NAMES, "model": model, "x": b[0], "y": b[-1].float() / 4.5 - 1}
            scope |= {"target": b[-1].float(), "y_train": raw}
            if "y_train" in fix:
                scope["y"] = raw[b[-1]]
            exec(fix, scope)
            if "target =" in fix:
                return F.binary_cross_entropy_with_logits(model(b[0])[:, 0], scope["target"])
            return scope.get("loss", F.mse_loss(model(b[0])[:, 0], scope["y"]))  # type: ignore[no-any-return]

        task.players[0].loss = loss

    return then(setup, build)


def in_forward(setup: Setup, fix: str) -> Setup:
    """Code that returns the logits, in place of the hook that softens them."""
    lines = [line for line in fix.splitlines() if line.startswith("return")]
    scope: dict[str, Any] = {}
    exec("def forward(logits):\n    " + lines[0], scope)

    def build(task: Task) -> None:
        task.model.register_forward_hook(lambda module, args, output: scope["forward"](output))

    return replace(setup, build=build)


def on_self(setup: Setup, fix: str) -> Setup:
    """Code that names ``self``: the module that holds a plain list."""
    return then(setup, lambda task: exec(fix, {**NAMES, "self": task.model}))


def anew(setup: Setup, fix: str) -> Setup:
    """Code that makes the optimizer anew, once the model is as it will be trained."""

    def script(s: Script, player: Any, optimizer: torch.optim.Optimizer, step: int) -> None:
        if step == 0:
            last = [m for m in player.module.modules() if isinstance(m, nn.Linear)][-1]
            last.weight = nn.Parameter(last.weight.detach().clone())
            scope = {"optimizer": optimizer, "model": player.module}
            exec(fix, scope)
            made.append(scope["optimizer"])
        in_order(s, player, made[0], step)

    made: list[Any] = []
    return replace(setup, script=script)


def in_float32(setup: Setup, fix: str) -> Setup:
    """The first line; the inputs are then in float32 as well."""
    first = fix.splitlines()[0]
    plain = replace(setup, build=lambda task: None, loss=Setup().loss)
    return on_the_model(plain, first)


def on_the_critic(setup: Setup, fix: str) -> Setup:
    """Code that names ``critic``: the first player."""

    def build(task: Task) -> None:
        exec(fix, {**NAMES, "critic": task.players[0].module})

    return then(setup, build)


def with_still_targets(setup: Setup, fix: str) -> Setup:
    """Code that makes ``target_net`` of ``net``, and ``target`` of what it says."""
    copied, targets = fix.split("\n", 1)

    def build(task: Task) -> None:
        net = task.extra["online"]
        scope = {**NAMES, "copy": copy, "net": net}
        passes = [0]

        def loss(b: Any) -> torch.Tensor:
            if passes[0] % 10 == 0:
                exec(copied, scope)
            passes[0] += 1
            scope.update(reward=b[2], next_state=b[3])
            exec(targets, scope)
            return F.mse_loss(net(b[0]).gather(1, b[1][:, None])[:, 0], scope["target"])

        task.players[0].loss = loss

    return then(setup, build)


def as_the_clip_with_a_scaler(setup: Setup, fix: str) -> Setup:
    return replace(as_the_clip(setup, fix), scaler={"init_scale": 2.0**12})


def in_autocast(setup: Setup, fix: str) -> Setup:
    """Code that makes ``loss`` of ``loss_fn``, ``model``, ``x`` and ``y``, without a scaler."""

    def build(task: Task) -> None:
        def loss(b: Any) -> torch.Tensor:
            scope = {**NAMES, "device_type": "cpu", "model": task.model, "x": b[0], "y": b[-1]}
            exec(fix, scope | {"loss_fn": F.cross_entropy} | (seen := {}), seen)
            return seen["loss"].float()  # type: ignore[no-any-return]

        task.players[0].loss = loss

    # the loss is large in this case only to make its scale overflow
    return replace(then(setup, build), scaler=None, loss=Setup().loss)


@dataclass(frozen=True)
class Remedy:
    """A fault of the corpus, the rule that names it, and how its fix is typed in.

    Attributes:
        fault: a key of `FAULTS`.
        architecture: where.
        rule: the first answer.
        mend: the setup with the fix.
    """

    fault: str
    architecture: str
    rule: str
    mend: Mend


REMEDIES = [
    Remedy("half_adam", "mlp", "SG107", in_float32),
    Remedy("rounded_away", "mlp", "SG108", in_float32),
    Remedy("outliers", "mlp", "SG202", as_the_clip),
    Remedy("depth_growth", "mlp", "SG203", on_each_layer),
    Remedy("recurrent_radius", "rnn", "SG204", on_the_model),
    Remedy("unbounded_critic", "gan", "SG201", on_the_critic),
    Remedy("diverging_q", "rl", "SG201", with_still_targets),
    Remedy("lagging_moment", "rnn", "SG207", as_the_clip),
    Remedy("dominant_scale", "mlp", "SG205", as_the_clip),
    Remedy("deep_sigmoid", "mlp", "SG301", with_residuals),
    Remedy("dead_relu", "mlp", "SG302", on_each_layer),
    Remedy("saturating", "mlp", "SG304", on_each_layer),
    Remedy("exploding_gates", "gru", "SG204", on_the_model),
    Remedy("forgetting", "rnn", "SG305", on_the_model),
    Remedy("forgetting_gates", "reader", "SG305", on_the_model),
    Remedy("over_clipped", "mlp", "SG401", as_the_clip),
    Remedy("never_reached", "mlp", "SG402", as_the_clip),
    Remedy("value_distorts", "mlp", "SG403", as_the_clip),
    Remedy("before_backward", "mlp", "SG404", as_the_clip),
    Remedy("after_step", "mlp", "SG405", as_the_clip),
    Remedy("before_unscale", "mlp", "SG406", as_the_clip_with_a_scaler),
    Remedy("per_micro_batch", "mlp", "SG407", as_the_clip),
    Remedy("partly", "mlp", "SG408", as_the_clip),
    Remedy("twice", "mlp", "SG409", as_the_clip),
    Remedy("gradients_passed", "mlp", "SG410", as_the_clip),
    Remedy("infinite_limit", "mlp", "SG411", as_the_clip),
    Remedy("deep_small", "mlp", "SG501", on_the_model),
    Remedy("constant", "mlp", "SG501", on_the_model),
    Remedy("rate_adam", "mlp", "SG502", on_the_optimizer),
    Remedy("scale_stuck", "mlp", "SG503", in_autocast),
    Remedy("divided_late", "mlp", "SG504", as_the_clip),
    Remedy("unnormalised", "mlp", "SG505", on_the_batch),
    Remedy("heavy_decay", "mlp", "SG506", on_the_optimizer),
    Remedy("unscaled_targets", "mlp", "SG507", on_the_loss),
    Remedy("never_cleared", "mlp", "SG601", as_the_step),
    Remedy("cleared_early", "mlp", "SG602", as_the_step),
    Remedy("plain_list", "rnn", "SG603", on_self),
    Remedy("replaced", "mlp", "SG604", anew),
    Remedy("double_softmax", "mlp", "SG606", in_forward),
    Remedy("undivided", "mlp", "SG607", as_the_backward),
    Remedy("all_pairs", "mlp", "SG608", on_the_loss),
    Remedy("wrong_targets", "mlp", "SG609", on_the_loss),
]


def words(text: str) -> list[str]:
    """What another processor, which rounds differently, says too."""
    return [w for w in re.findall("[A-Za-z_]{2,}", text) if not w.endswith("illion")]


def hold_to_its_page(remedy: Remedy, found: Finding) -> None:
    """Where a rule's page shows this case, what it quotes is what is said of it."""
    if SHOWN.get(remedy.rule, ())[:2] == (remedy.fault, remedy.architecture):
        page = Path(rules.__file__).parent / "pages" / f"{remedy.rule}.md"
        title, *evidence = [t[2:] for t in page.read_text().splitlines() if t.startswith("> ")]
        assert words(title) == words(found.title), "type python -m corpus.pictures"
        assert len(evidence) == len(found.evidence), "type python -m corpus.pictures"


@pytest.mark.parametrize("remedy", REMEDIES, ids=lambda r: f"{r.rule}-{r.fault}")
@pytest.mark.filterwarnings("ignore")
def test_the_fault_is_gone_once_the_fix_is_typed_in(remedy: Remedy, tmp_path: Path) -> None:
    broken = FAULTS[remedy.fault].make(remedy.architecture, SEED)
    before = findings(remedy.architecture, broken, tmp_path / "before.db")
    assert before[0].id == remedy.rule, before[0].title
    hold_to_its_page(remedy, before[0])
    fix = before[0].fixes[0]
    after = findings(remedy.architecture, remedy.mend(broken, fix), tmp_path / "after.db")
    graver = [f for f in after if f.severity != "info"]
    assert not graver, (fix, graver[0].title)
    if before[0].severity == "info":
        assert remedy.rule not in {f.id for f in after}, fix


@pytest.mark.filterwarnings("ignore")
def test_what_is_cut_off_is_shown_and_what_is_to_stay_is_let_be(tmp_path: Path) -> None:
    """SG303: its first fix fails while the graph is cut, its second silences a layer to spare."""
    found = findings("mlp", FAULTS["detached"].make("mlp", SEED), tmp_path / "cut.db")
    model = nn.Sequential(nn.Linear(64, 48), nn.Linear(48, 10))
    for cut in (True, False):
        model.zero_grad()
        hidden = model[0](torch.ones(2, 64))
        model[1](hidden.detach() if cut else hidden).sum().backward()
        with pytest.raises(AssertionError) if cut else contextlib.nullcontext():
            exec(found[0].fixes[0], {"model": model})
    unused = FAULTS["unused"].make("mlp", SEED)
    before = findings("mlp", unused, tmp_path / "before.db")
    assert before[0].id == "SG303"
    mended = on_the_model(unused, before[0].fixes[1])
    assert findings("mlp", mended, tmp_path / "after.db") == []


@pytest.mark.filterwarnings("ignore")
def test_a_schedule_of_epochs_is_stepped_once_an_epoch(tmp_path: Path) -> None:
    """SG605: its first fix is the loop itself."""

    def recorded(loop: str, path: Path) -> list[Finding]:
        torch.manual_seed(SEED)
        x, labels = digits()
        model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.1)

        def train(rows: slice) -> None:
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), labels[rows]).backward()
            optimizer.step()

        loader = [slice(first, first + 32) for first in range(0, 960, 32)]
        with attach(optimizer, model=model, run=path):
            exec(loop, {"epochs": 3, "loader": loader, "train": train, "scheduler": scheduler})
        return steadygrad.diagnose(path)

    a_batch = "for _ in range(epochs):\n  for batch in loader:\n    train(batch); scheduler.step()"
    before = recorded(a_batch, tmp_path / "before.db")
    assert before[0].id == "SG605"
    assert recorded(before[0].fixes[0], tmp_path / "after.db") == []
