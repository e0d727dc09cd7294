"""Every optimizer of torch.optim, in every form that runs here, is observed bit for bit."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

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
    norms = run.steps.norm[run.steps.optimizer == 1]
    assert len(norms) == 3
    norm = torch.stack([grad.norm() for grad in plain[-4:]]).norm().item()
    assert abs(norms[-1] - norm) < 1e-6
