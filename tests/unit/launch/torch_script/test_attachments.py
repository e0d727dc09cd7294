"""Every optimizer of torch.optim, in every form that runs here, is observed bit for bit."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import steadygrad
from steadygrad.launch.torch_script import by_hand, census, observer
from steadygrad.torch.internals.alive import alive

from ....optimizers import SlowWeights

Observe = Callable[..., Any]

FORMS = ("foreach", "fused", "capturable", "differentiable", "amsgrad", "maximize", "nesterov")
KINDS = [
    kind
    for kind in vars(torch.optim).values()
    if inspect.isclass(kind)
    and issubclass(kind, torch.optim.Optimizer)
    and kind not in (torch.optim.Optimizer, torch.optim.LBFGS, torch.optim.SparseAdam)
]


def forms_of(kind: type[torch.optim.Optimizer]) -> list[dict[str, Any]]:
    takes = inspect.signature(kind).parameters
    named = [{form: True} for form in FORMS if form in takes]
    for form in named:
        if "nesterov" in form:
            form.update(momentum=0.9)
    return [{}, *named]


def trained(kind: Callable[..., torch.optim.Optimizer], form: dict[str, Any]) -> list[torch.Tensor]:
    """Weights after three steps, clipped by the script; one step where they are part of a graph."""
    torch.manual_seed(0)
    # Muon takes matrices alone
    net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Tanh(), nn.Linear(8, 3, bias=False))
    weights: list[torch.Tensor] = list(net.parameters())
    if form.get("differentiable"):
        weights = [weight.clone() for weight in weights]
        for weight in weights:
            weight.retain_grad()
    optimizer = kind(weights, lr=0.05, **form)
    x = torch.randn(16, 4)
    for _ in range(1 if form.get("differentiable") else 3):
        optimizer.zero_grad()
        (3 * torch.tanh(x @ weights[0].T) @ weights[1].T - 1).pow(2).mean().backward()
        torch.nn.utils.clip_grad_norm_(weights, 0.5)
        optimizer.step()
    states = [s for state in optimizer.state.values() for s in state.values()]
    tensors = [state.detach().clone() for state in states if isinstance(state, torch.Tensor)]
    return [*(weight.detach().clone() for weight in weights), *tensors]


def tried_plainly(kind: Any, form: dict[str, Any]) -> list[torch.Tensor] | None:
    try:
        return trained(kind, form)
    except (RuntimeError, AssertionError, NotImplementedError):
        assert form.keys() & {"capturable", "fused", "differentiable"}, form  # not on a CPU
        return None


def test_every_form_of_every_optimizer_is_observed_bit_for_bit(observe: Observe) -> None:
    # in one run: an observer for each would cost more than the trainings
    tried = [(kind, form, tried_plainly(kind, form)) for kind in KINDS for form in forms_of(kind)]
    plain = [(kind, form, tensors) for kind, form, tensors in tried if tensors is not None]
    assert {kind for kind, _, _ in plain} == set(KINDS)
    seen = observe()
    for kind, form, theirs in plain:
        ours = trained(kind, form)
        assert len(ours) == len(theirs)
        assert all(map(torch.equal, ours, theirs)), (kind.__name__, form)
    run = seen.run()
    assert [o["class"] for o in run.info["optimizers"]] == [kind.__name__ for kind, _, _ in plain]
    assert (run.steps.threshold == 0.5).all()
    assert (run.steps.coef < 1).any()


class MakesGradients(torch.optim.Optimizer):
    """Makes the gradients that its inner optimizer steps on, as a GSAM with `set_closure` does."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net.parameters(), {})
        self.base_optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        self.net = net

    def step(self, closure: Any = None) -> None:
        self.base_optimizer.zero_grad()
        self.net(torch.ones(3, 4)).square().mean().backward()
        self.base_optimizer.step()


def test_gradients_made_inside_a_step_are_seen_at_the_inner_one(observe: Observe) -> None:
    def trained() -> list[torch.Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        optimizer = MakesGradients(net)
        for _ in range(4):
            optimizer.step()
        return [
            *net.state_dict().values(),
            *(p.grad for p in net.parameters() if p.grad is not None),
        ]

    plain = trained()
    seen = observe()
    assert all(map(torch.equal, trained(), plain))
    run = seen.run()
    assert [o["class"] for o in run.info["optimizers"]] == ["MakesGradients", "SGD"]
    assert (run.steps.optimizer == 0).sum() == 1  # the one that showed it
    norms = run.steps.norm[run.steps.optimizer == 1]
    assert len(norms) == 3
    norm = torch.stack([grad.norm() for grad in plain[-4:]]).norm().item()
    assert abs(norms[-1] - norm) < 1e-6


class Hybrid(torch.optim.Optimizer):
    """Leaves weights that are in none of its groups to an Adam."""

    def __init__(self, net: nn.Module) -> None:
        self.adam = torch.optim.Adam([p for p in net.parameters() if p.ndim == 1], lr=0.05)
        super().__init__([p for p in net.parameters() if p.ndim == 2], {})

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            p.data.sub_(p.grad.sign(), alpha=0.05)
        self.adam.step()


def test_weights_that_an_inner_optimizer_alone_moves_are_on_record(observe: Observe) -> None:
    def trained() -> tuple[list[torch.Tensor], list[list[float]]]:
        torch.manual_seed(0)
        net, norms = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), []
        optimizer, x = Hybrid(net), torch.randn(8, 4)
        for _ in range(3):
            net.zero_grad()
            (net(x) - x.sum(1, keepdim=True)).square().mean().backward()
            grads = [[p.grad.double() for p in net.parameters() if p.ndim == n] for n in (2, 1)]
            norms.append([float(torch.cat([g.ravel() for g in some]).norm()) for some in grads])
            optimizer.step()
        return [p.detach() for p in net.parameters()], norms

    plain, norms = trained()
    seen = observe()
    assert all(map(torch.equal, trained()[0], plain))
    steps = seen.run().steps
    assert [o["class"] for o in seen.run().info["optimizers"]] == ["Hybrid", "Adam"]
    for number in (0, 1):
        own = steps.norm[steps.optimizer == number]
        torch.testing.assert_close(torch.tensor(own), torch.tensor(norms).double()[:, number])


class PostLocalSGDOptimizer(SlowWeights):
    """By this name, one that cannot be skipped."""


BROKEN = (3, 5)


def slowly_trained(
    kind: type[SlowWeights], skip: bool, tried: bool = False
) -> tuple[list[torch.Tensor], int]:
    """Weights after eight steps, two of them on NaN, and the wrapper's own count.

    Args:
        kind: of the wrapper.
        skip: whether the script skips those two itself.
        tried: whether there is a backward before the optimizer is made.
    """
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    if tried:
        net(torch.ones(1, 4)).sum().backward()
    optimizer = kind(torch.optim.Adam(net.parameters(), lr=0.05))
    for step in range(8):
        optimizer.optimizer.zero_grad()
        loss = net(torch.randn(6, 4)).pow(2).mean() * (math.nan if step in BROKEN else 1.0)
        loss.backward()
        if not (skip and step in BROKEN):
            optimizer.step()
        if step == 1:  # it wraps `step` in its turn
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
        elif step:
            scheduler.step()
    return [p.detach() for p in net.parameters()], optimizer.param_groups[0]["counter"]


class PassesOn(torch.optim.Optimizer):
    """As Accelerate's and Lightning's: it has no groups of its own, and steps when it likes."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.optimizer, self.count = inner, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.optimizer, name)

    def step(self, closure: Any = None) -> Any:
        self.count += 1
        return self.optimizer.step() if self.count % 2 else None


@pytest.mark.parametrize("walks", [16, 0])
def test_what_only_passes_a_step_on_is_not_acted_on(
    observe: Observe, monkeypatch: pytest.MonkeyPatch, walks: int
) -> None:
    monkeypatch.setattr(by_hand, "MOST_WALKS", walks)
    monkeypatch.setattr(observer, "MOST_WALKS", walks)
    seen = observe(clip="norm:0.5")
    net = nn.Linear(4, 1)
    optimizer = PassesOn(torch.optim.Adam(net.parameters(), lr=0.05))
    for _ in range(4):
        net(torch.ones(2, 4)).pow(2).mean().backward()
        optimizer.step()
    run = seen.run()
    assert len(run) == 2
    assert run.info["optimizers"][0]["class"] == "Adam"
    assert "step" not in vars(optimizer)


@pytest.mark.parametrize("walks", [16, 0], ids=["met at a backward", "met in its first step"])
def test_a_wrapper_without_hooks_is_skipped_with_the_optimizer_inside(
    observe: Observe, monkeypatch: pytest.MonkeyPatch, walks: int
) -> None:
    weights, count = slowly_trained(SlowWeights, skip=True)
    monkeypatch.setattr(by_hand, "MOST_WALKS", walks)
    monkeypatch.setattr(observer, "MOST_WALKS", walks)
    seen = observe(clip="norm:1e9")
    after, counted = slowly_trained(SlowWeights, skip=False)
    assert counted == count
    for ours, theirs in zip(after, weights, strict=True):
        assert torch.equal(ours, theirs)
    steps = seen.run().steps
    assert [step for step in range(8) if steps.action[step] == "skip"] == list(BROKEN)
    assert set(steps.optimizer.tolist()) == {0}


def test_a_wrapper_that_is_made_after_a_backward_is_met_before_its_first_step(
    observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "BROKEN", (0,))
    weights, count = slowly_trained(SlowWeights, skip=True, tried=True)
    others = alive(torch.optim.Optimizer)  # of other tests: where there is one, none is awaited

    def new(*classes: type) -> list[Any]:
        return [thing for thing in alive(*classes) if not any(thing is other for other in others)]

    monkeypatch.setattr(census, "alive", new)
    observe(clip="norm:1e9")
    after, counted = slowly_trained(SlowWeights, skip=False, tried=True)
    assert counted == count
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(after, weights, strict=True))


def test_a_wrapper_that_is_met_in_a_step_to_be_skipped_is_told(
    observe: Observe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_hand, "MOST_WALKS", 0)
    monkeypatch.setattr(observer, "MOST_WALKS", 0)
    monkeypatch.setitem(globals(), "BROKEN", (0,))
    seen = observe(clip="norm:1e9")
    weights, count = slowly_trained(SlowWeights, skip=False)
    assert all(bool(weight.isfinite().all()) for weight in weights)
    assert count == 8 % 3
    seen.session._conclude()
    (said,) = seen.session.troubles
    assert said.startswith("the first step of the script's SlowWeights was skipped in the Adam")
    assert steadygrad.open_run(seen.session.path).steps.action.tolist().count("skip") == 1


def test_a_wrapper_without_hooks_that_cannot_be_skipped_is_told(observe: Observe) -> None:
    seen = observe(clip="norm:1e9")
    weights, _ = slowly_trained(PostLocalSGDOptimizer, skip=False)
    assert all(bool(weight.isfinite().all()) for weight in weights)
    seen.session._conclude()
    (said,) = seen.session.troubles
    assert "are skipped in the Adam inside the script's PostLocalSGDOptimizer" in said
    assert steadygrad.open_run(seen.session.path).steps.action.tolist().count("skip") == 2
