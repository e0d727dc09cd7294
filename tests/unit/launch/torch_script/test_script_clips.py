"""Where the script's clip calls stand in its loop, and what the rules make of it."""

from __future__ import annotations

import gc
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_ as imported_early
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import steadygrad
import steadygrad.torch as sg
from steadygrad.torch.internals.scaler import HANDLE

Observe = Callable[..., Any]
STEPS = 24


def clip(*words: Any, **more: Any) -> Any:
    return torch.nn.utils.clip_grad_norm_(*words, **more)  # looked up late, as most scripts do


class Loop:
    """A small training whose clip call stands where a test puts it."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1e-3)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=10_000)
        self.used_up = self.net.parameters()

    def loss(self) -> torch.Tensor:
        out: torch.Tensor = (self.net(torch.randn(8, 4)) - 3).pow(2).mean()
        return out

    def right(self) -> None:
        self.loss().backward()
        clip(self.net.parameters(), 0.5)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def at_two_weights(self) -> None:
        """As SAM does: up the slope, and the gradient there."""
        self.loss().backward()
        clip(self.net.parameters(), 0.5)
        ups = [0.05 * p.grad for p in self.net.parameters() if p.grad is not None]
        with torch.no_grad():
            torch._foreach_add_(list(self.net.parameters()), ups)
        self.optimizer.zero_grad()
        self.loss().backward()
        clip(self.net.parameters(), 0.5)
        with torch.no_grad():
            torch._foreach_sub_(list(self.net.parameters()), ups)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def before_backward(self) -> None:
        self.optimizer.zero_grad()
        clip(self.net.parameters(), 0.5)
        self.loss().backward()
        self.optimizer.step()

    def after_step(self) -> None:
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()
        clip(self.net.parameters(), 0.5)

    def before_unscale(self) -> None:
        self.optimizer.zero_grad()
        self.scaler.scale(self.loss()).backward()
        clip(self.net.parameters(), 64.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def after_unscale(self) -> None:
        self.optimizer.zero_grad()
        self.scaler.scale(self.loss()).backward()
        self.scaler.unscale_(self.optimizer)
        clip(self.net.parameters(), 0.5)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def micro_batches(self) -> None:
        for _ in range(3):
            (self.loss() / 3).backward()
            clip(self.net.parameters(), 0.5)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def part(self) -> None:
        self.loss().backward()
        clip(self.net[0].parameters(), 0.5)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def twice(self) -> None:
        self.loss().backward()
        clip(self.net.parameters(), 0.5)
        clip(self.net.parameters(), 0.4)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def gradients(self) -> None:
        self.loss().backward()
        clip([p.grad for p in self.net.parameters()], 0.5)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def generator(self) -> None:
        list(self.used_up)
        self.loss().backward()
        clip(list(self.used_up), 0.5)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def unlimited(self) -> None:
        self.loss().backward()
        clip(self.net.parameters(), math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def one_by_one(self) -> None:
        self.loss().backward()
        for parameter in self.net.parameters():
            clip(parameter, 1e-3)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def one_by_one_some_frozen(self) -> None:
        self.net[0].bias.requires_grad_(False)
        self.one_by_one()


PLACES = {
    "before_backward": "SG404",
    "after_step": "SG405",
    "before_unscale": "SG406",
    "micro_batches": "SG407",
    "part": "SG408",
    "twice": "SG409",
    "gradients": "SG410",
    "generator": "SG410",
    "unlimited": "SG411",
}


def observed(observe: Observe, place: str) -> Any:
    seen = observe()
    loop = Loop()
    for _ in range(STEPS):
        getattr(loop, place)()
    return seen.run()


def misplaced(run: Any) -> set[str]:
    return {f.id for f in steadygrad.diagnose(run)} & {f"SG4{n:02d}" for n in range(4, 12)}


@pytest.mark.parametrize("place", PLACES)
def test_a_misplaced_clip_is_told_and_no_other(observe: Observe, place: str) -> None:
    run = observed(observe, place)
    assert len(run.steps) == STEPS
    assert misplaced(run) == {PLACES[place]}
    assert sum(kind["count"] for kind in run.info["clip_calls"]) >= STEPS - 1


@pytest.mark.parametrize("place", ["right", "after_unscale", "at_two_weights"])
def test_a_well_placed_clip_is_not_told_of(observe: Observe, place: str) -> None:
    run = observed(observe, place)
    assert misplaced(run) == set()
    (kind,) = run.info["clip_calls"]
    calls = STEPS * (2 if place == "at_two_weights" else 1)
    assert (kind["count"], kind["first_step"], kind["last_step"]) == (calls, 0, STEPS - 1)
    assert (run.steps.threshold == 0.5).all()


def test_a_frozen_parameter_that_is_clipped_by_itself_is_no_gradient(observe: Observe) -> None:
    assert misplaced(observed(observe, "one_by_one_some_frozen")) == set()


def test_a_clip_of_each_parameter_by_itself_is_no_over_clipping(observe: Observe) -> None:
    run = observed(observe, "one_by_one")
    assert (run.steps.coef < 1).all()
    assert misplaced(run) == set()
    assert "SG401" not in {finding.id for finding in steadygrad.diagnose(run)}
    assert {kind["count"] for kind in run.info["clip_calls"]} == {STEPS * len(run.tensors)}
    written = [event.step for event in run.events if event.kind == "script_clip"]
    assert written == [step for step in range(8) for _ in run.tensors]


def test_a_clip_of_scaled_gradients_is_recorded_unscaled(observe: Observe) -> None:
    run = observed(observe, "before_unscale")
    assert run.steps.threshold.tolist() == [64.0 / 256.0] * STEPS
    raw = [e.data["norm"] for e in run.events if e.kind == "script_clip"]
    assert run.steps.norm.tolist() == pytest.approx([norm / 256.0 for norm in raw], rel=1e-6)


def test_the_norm_of_a_partly_clipped_step_is_that_before(observe: Observe) -> None:
    seen = observe()
    loop = Loop()
    loop.loss().backward()
    whole = [p.grad.norm().item() for p in loop.net.parameters() if p.grad is not None]
    clip(loop.net[0].parameters(), 1e-3)
    loop.optimizer.step()
    run = seen.run()
    assert run.tensor_norms[0] == pytest.approx(whole, rel=5e-3)
    assert run.steps.norm[0] == pytest.approx(math.hypot(*whole), rel=1e-6)
    assert run.steps.coef[0] == pytest.approx(
        math.hypot(1e-3, *whole[2:]) / math.hypot(*whole), rel=1e-4
    )


def test_calls_of_other_kinds_are_seen(observe: Observe) -> None:
    seen = observe()
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    for kind in ("inf", "given", "deprecated", "keyword", "ours", "our value"):
        optimizer.zero_grad()
        (weight * torch.tensor([3.0, 4.0])).sum().backward()
        if kind == "inf":
            clip(weight, 2.0, math.inf)
        elif kind == "given":
            torch.nn.utils.clip_grads_with_norm_([weight], 1.0, torch.tensor(10.0))
        elif kind == "deprecated":
            with pytest.warns(FutureWarning, match="deprecated") as caught:
                torch.nn.utils.clip_grad_norm([weight], 1.0)
            assert caught[0].filename == __file__
        elif kind == "keyword":
            clip(parameters=iter([weight]), max_norm=1.0, norm_type=2)
        elif kind == "ours":
            assert sg.clip_grad_norm_(iter([weight]), 1.0).dtype == torch.float64
            sg.clip_grad_norm_([weight], math.inf)  # which only reads
        else:
            sg.clip_grad_value_([weight], 3.0)
        optimizer.step()
    run = seen.run()
    steps = run.steps
    assert steps.norm.tolist() == [4.0, 5.0, 5.0, 5.0, 5.0, 5.0]
    assert steps.threshold.tolist() == [2.0, 1.0, 1.0, 1.0, 1.0, 3.0]
    near = pytest.approx([0.5, 0.1, 0.2, 0.2, 0.2, math.hypot(3, 3) / 5], rel=1e-6)
    assert steps.coef.tolist() == near
    assert steps.coef[4] == 0.2  # without torch's 1e-6
    assert [event.step for event in run.events if event.kind == "script_clip"] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("held", [torch.tensor, np.array])
def test_figures_that_a_script_changes_in_place_are_recorded_as_they_were(
    held: Callable[..., Any], observe: Observe
) -> None:
    seen, loop = observe(), Loop()
    limit, norms, limits, usual = held(0.5), [], [], 0.25
    for step in range(6):
        loop.optimizer.zero_grad()
        loop.loss().backward()
        norm = clip(loop.net.parameters(), usual if step > 3 else limit)
        norms.append(norm.item())
        limits.append(usual if step > 3 else float(limit))
        norm *= math.nan if step == 2 else 2
        limit *= 0.5
        if step == 2:  # the norm was finite: these gradients are of one step with the next ones
            loop.loss().backward()
        loop.optimizer.step()
    run = seen.run()
    events = [event.data for event in run.events if event.kind == "script_clip"]
    assert [event["norm"] for event in events] == norms
    assert [event["max_norm"] for event in events] == limits
    assert run.steps.threshold[[0, 1, 3, 4, 5]].tolist() == [limits[at] for at in (0, 1, 3, 4, 5)]
    assert run.steps.loss[2] > 1.5 * run.steps.loss[1]


def test_the_loop_of_a_dropped_optimizer_stays_on_record(observe: Observe) -> None:
    seen = observe()
    for _ in range(12):  # the ids of optimizers are used again
        Loop().right()
        gc.collect()
    assert [each["index"] for each in seen.run().info["loop"]["optimizers"]] == list(range(12))


class _Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


class _Calls(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.names.append(str(getattr(function, "__name__", function)))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode_of", [_Operations, _Calls])
def test_a_mode_of_the_scripts_sees_no_operation_of_ours(
    observe: Observe, mode_of: type[_Operations] | type[_Calls]
) -> None:
    """Else one that counts has other counts, and one that draws has other random numbers."""

    def operations() -> list[str]:
        loop, mode = Loop(), mode_of()
        rnn = nn.LSTM(4, 4)
        loop.optimizer.add_param_group({"params": list(rnn.parameters())})
        with mode:
            for _ in range(6):
                loop.right()
                states, (last, cell) = rnn(torch.randn(5, 2, 4))
                (states.sum() + last.sum() + cell.sum()).backward()
                loop.after_unscale()
                loss = loop.loss()
                for weight, grad in zip(
                    loop.net.parameters(),
                    torch.autograd.grad(loss, list(loop.net.parameters())),
                    strict=True,
                ):
                    weight.grad = grad
                loop.optimizer.step()
            alike = Loop()
            for _ in range(6):
                alike.right()
            hand = nn.Linear(2, 1)
            for _ in range(6):
                hand.zero_grad()
                hand(torch.ones(3, 2)).sum().backward()
                for weight in hand.parameters():
                    if weight.grad is not None:
                        weight.data.sub_(weight.grad, alpha=1e-3)
        assert (len(mode.names) > 100, torch._C._len_torch_function_stack()) == (True, 0)
        return mode.names

    plain = operations()
    seen = observe()
    assert operations() == plain
    assert len(seen.run().steps) >= 18


def test_torchs_own_warnings_and_errors_still_name_the_script(observe: Observe) -> None:
    observe()
    with pytest.warns(UserWarning, match="empty generator") as caught:
        clip((p for p in []), 1.0)
    assert caught[0].filename == __file__
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([1.0, math.nan])
    with pytest.raises(RuntimeError, match="non-finite"):
        clip([weight], 1.0, error_if_nonfinite=True)
    with pytest.raises(TypeError):
        clip([weight])
    assert imported_early is torch.nn.utils.clip_grad_norm_  # seen however it was imported


AGC = """
import torch
def adaptive_clip_grad(parameters, clip_factor=0.01, eps=1e-3, norm_type=2.0):
    if isinstance(parameters, torch.Tensor):
        parameters = [parameters]
    for p in parameters:
        if p.grad is not None:
            most = max(p.detach().norm(norm_type).item(), eps) * clip_factor
            norm = p.grad.norm(norm_type).item()
            if norm > most:
                p.grad.detach().mul_(most / norm)
"""


DEEPSPEED = """
import torch

class DeepSpeedEngine:
    def __init__(self, module, limit, parts):
        self.module, self.limit, self.parts = module, limit, parts
        self.weights = list(module.parameters())
        copies = [torch.nn.Parameter(w.detach().clone()) for w in self.weights]
        self.copies = copies if parts else self.weights
        self.optimizer = torch.optim.SGD(self.copies, lr=0.5)
    def gradient_clipping(self):
        return self.limit
    def zero_optimization(self):
        return self.parts
    def _take_model_step(self, lr_kwargs):
        for weight, copy in zip(self.weights, self.copies):
            copy.grad = weight.grad
        self.optimizer.step()
        for weight, copy in zip(self.weights, self.copies):
            weight.data.copy_(copy.data)
            weight.grad = None
"""


@pytest.mark.parametrize(("limit", "parts"), [(0.0, False), (1.0, False), (0.0, True)])
def test_deepspeeds_own_clipping_and_its_copies_are_named(
    observe: Observe, tmp_path: Path, limit: float, parts: bool
) -> None:
    module = loaded(tmp_path / "engine.py", DEEPSPEED)
    seen, model = observe(), nn.Linear(1, 1)
    seen.patches.watch_deepspeed(module)
    engine = module.DeepSpeedEngine(model, limit, parts)
    for _ in range(3):
        model(torch.ones(1, 1)).pow(2).sum().backward()
        engine._take_model_step({})
    named = [what for what in seen.session.troubles if "gradient_clipping=1" in what]
    assert len(named) == (limit > 0)
    getattr(engine.optimizer, HANDLE)._engine.journal.tell("ranks differ")
    assert ("ranks differ" in seen.session.troubles) is not parts
    seen.session.troubles.clear()
    run = seen.run()
    assert [each["class"] for each in run.info["optimizers"]] == ["SGD"], "none by hand"
    assert len(run.steps["norm"]) == 3


def loaded(path: Path, source: str) -> Any:
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("spec", [None, "norm:0.5"])
def test_a_librarys_adaptive_clipping_is_a_clip_call(
    observe: Observe, tmp_path: Path, spec: str | None
) -> None:
    module = loaded(tmp_path / "agc.py", AGC)
    seen = observe(**({} if spec is None else {"clip": spec}))
    seen.patches.see_agc(module)
    small, large = nn.Parameter(torch.ones(1)), nn.Parameter(torch.full((1,), 400.0))
    optimizer = torch.optim.SGD([small, large], lr=1.0)
    (small * 3 + large * 4).sum().backward()
    module.adaptive_clip_grad((p for p in (small, large)), 0.01)
    optimizer.step()
    record = seen.run().steps[0]
    assert record["norm"] == 5.0
    assert record["action"] == "clip"
    if spec is None:
        assert small.item() == pytest.approx(0.99)
        assert record["threshold"] == math.inf
        assert record["coef"] == pytest.approx(math.hypot(0.01, 4) / 5)
    else:
        assert record["threshold"] == 0.5
        assert small.item() == pytest.approx(1 - 0.3)


class ClipsInside(torch.optim.SGD):
    """As libraries have it: the clip is a part of the step."""

    def step(self, closure: Any = None) -> Any:
        clip(self.param_groups[0]["params"], 0.5)
        return super().step(closure)


@pytest.mark.parametrize("kind", ["class", "attribute"])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_clip_inside_the_step_stands_before_it(observe: Observe, kind: str, scaled: bool) -> None:
    seen, loop, norms = observe(), Loop(), []
    optimizer: torch.optim.Optimizer = ClipsInside(loop.net.parameters(), lr=1e-3)
    if kind == "attribute":
        optimizer = torch.optim.SGD(loop.net.parameters(), lr=1e-3)
        original = optimizer.step

        def step() -> None:
            clip(loop.net.parameters(), 0.5)
            original()

        optimizer.step = step  # type: ignore[method-assign,assignment]
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loop.loss()
        (loop.scaler.scale(loss) if scaled else loss).backward()
        scale = loop.scaler.get_scale() if scaled else 1.0
        norms.append(float(sg.get_total_norm([p.grad for p in loop.net.parameters()])) / scale)
        if scaled:
            loop.scaler.step(optimizer)
            loop.scaler.update()
        else:
            optimizer.step()
    if kind == "attribute":
        assert optimizer.step is step
    run = seen.run()
    assert run.steps.norm == pytest.approx(norms, rel=1e-6)
    assert run.steps.threshold.tolist() == [0.5] * STEPS
    assert run.steps.coef == pytest.approx(np.minimum(1.0, 0.5 / np.array(norms)), rel=1e-5)
    placed = [e.data for e in run.events if e.kind == "script_clip"]
    assert [call["step"] for call in placed] == list(range(STEPS))
    assert not any(call["after_step"] for call in placed)
    assert not any(
        f.id.startswith("SG40") and f.severity == "error" for f in steadygrad.diagnose(run)
    )


def test_a_clip_of_a_copy_that_is_tried_out_is_none_of_the_scripts(observe: Observe) -> None:
    seen, loop = observe(clip="norm:0.5"), Loop()
    optimizer = ClipsInside(loop.net.parameters(), lr=1e-3)  # may be skipped: tried out first
    for _ in range(4):
        optimizer.zero_grad()
        loop.loss().backward()
        optimizer.step()
    assert seen.calls() == []
