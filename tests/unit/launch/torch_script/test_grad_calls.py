"""Loops around `torch.autograd.grad`: seen as what they are, and never called misplaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from steadygrad.rules import diagnose

Observe = Callable[..., Any]


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def norm_of(grads: Any) -> float:
    return float(
        np.linalg.norm(np.concatenate([g.detach().double().numpy().ravel() for g in grads]))
    )


def losses_of(net: nn.Module, parts: int = 1) -> list[torch.Tensor]:
    data = torch.randn(16, 4)
    return [(10 * net(data[k::parts]) - 3).pow(2).mean() for k in range(parts)]


def into_grad(way: str, net: nn.Module) -> float:
    """One step's gradients into `.grad`, without a `backward`; gives the loss."""
    weights = list(net.parameters())
    losses = losses_of(net, 2 if way == "summed" else 1)
    for weight in weights:
        weight.grad = None
    for loss in losses:
        for weight, grad in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            if way == "assigned":
                weight.grad = grad
            else:
                before = 0 if weight.grad is None else weight.grad
                weight.grad = before + grad / len(losses)
    return float(losses[0].detach())


@pytest.mark.parametrize("way", ["assigned", "copied", "summed"])
def test_an_optimizer_that_is_given_them_is_seen_and_its_clip_well_placed(
    observe: Observe, way: str
) -> None:
    seen, net, norms, losses = observe(), model(), [], []
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    for _ in range(10):
        losses.append(into_grad(way, net))
        norms.append(norm_of(p.grad for p in net.parameters()))
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    run = seen.run()
    np.testing.assert_allclose(run.steps.norm, norms, rtol=1e-6)
    assert (run.steps.coef < 1).all()
    expected = [float("nan")] * 10 if way == "summed" else losses
    np.testing.assert_allclose(run.steps.loss, expected, rtol=1e-6)
    (calls,) = run.info["clip_calls"]
    assert not any(calls[place] for place in ("before_backward", "after_step", "per_micro_batch"))
    assert not {"SG104", "SG404", "SG405", "SG601"} & {finding.id for finding in diagnose(run)}


def test_gradients_from_no_backward_at_all_are_no_misplaced_clip(observe: Observe) -> None:
    seen, net = observe(), model()  # as evolution strategies estimate them
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    for _ in range(20):
        for weight in net.parameters():
            weight.grad = torch.ones_like(weight)
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    run = seen.run()
    assert not {"SG404", "SG405", "SG601"} & {finding.id for finding in diagnose(run)}


def test_updates_by_hand_are_steps(observe: Observe) -> None:
    seen, net, norms, losses = observe(), model(), [], []
    weights = list(net.parameters())
    for _ in range(6):
        (loss,) = losses_of(net)
        grads = torch.autograd.grad(loss, net.parameters())  # a generator, read once
        norms.append(norm_of(grads))
        losses.append(float(loss.detach()))
        with torch.no_grad():
            for weight, grad in zip(weights, grads, strict=True):
                weight -= 1e-3 * grad
    run = seen.run()
    np.testing.assert_allclose(run.steps.norm, norms, rtol=1e-12)
    np.testing.assert_allclose(run.steps.loss, losses, rtol=1e-7)
    assert [tensor.name for tensor in run.tensors] == [name for name, _ in net.named_parameters()]


def test_what_only_the_script_adds_up_is_said_and_not_recorded(observe: Observe) -> None:
    seen, net = observe(), model()
    weights = list(net.parameters())
    for _ in range(4):
        grads = [torch.autograd.grad(loss, weights) for loss in losses_of(net, 2)]
        with torch.no_grad():
            for weight, first, second in zip(weights, *grads, strict=True):
                weight -= 1e-3 * (first + second)
    seen.session._conclude()
    assert seen.patches.steps == 0
    assert any("3 updates by hand are not recorded" in each for each in seen.session.troubles)


def test_derivatives_and_penalties_are_no_steps_of_their_own(observe: Observe) -> None:
    seen, net, losses = observe(), model(), []
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    points = torch.randn(16, 4, requires_grad=True)
    for _ in range(4):
        optimizer.zero_grad()
        values = net(points)
        (slope,) = torch.autograd.grad(values.sum(), points, create_graph=True)
        weights = list(net.parameters())
        fast = torch.autograd.grad(values.pow(2).mean(), weights, create_graph=True)
        loss = slope.pow(2).mean() + sum(grad.pow(2).sum() for grad in fast)
        loss.backward()
        losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    run = seen.run()
    assert seen.patches.backwards == 4
    np.testing.assert_allclose(run.steps.loss, losses, rtol=1e-6)
    (calls,) = run.info["clip_calls"]
    assert not calls["per_micro_batch"]


def test_transforms_are_left_alone(observe: Observe) -> None:
    seen, net = observe(), model()
    weights = dict(net.named_parameters())

    def loss(held: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(net, held, (torch.ones(2, 4),)).pow(2).mean()

    for _ in range(3):
        grads = torch.func.grad(loss)(weights)
        with torch.no_grad():
            for name, weight in weights.items():
                weight -= 1e-3 * grads[name]
    seen.session._conclude()
    assert seen.session.troubles == []
    assert seen.patches.steps == 0


def test_two_calls_for_the_same_weights_whose_gradients_both_live(observe: Observe) -> None:
    """A step along the sum of two gradients, which the script holds: neither is compared."""
    seen, net = observe(), model()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    for _ in range(3):
        weights = list(net.parameters())
        first, second = (torch.autograd.grad(loss, weights) for loss in losses_of(net, 2))
        for weight, one, other in zip(weights, first, second, strict=True):
            weight.grad = one + other
        optimizer.step()
    run = seen.run()
    assert len(run) == 3
    assert not run.info.get("troubles")
