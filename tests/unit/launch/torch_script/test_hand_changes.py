"""Clips that a script writes as arithmetic, without a clip call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

Gradients = list[torch.Tensor]
LIMIT = 0.25


def _factor(grads: Gradients, limit: float = LIMIT) -> torch.Tensor:
    norm = torch.stack([grad.norm() for grad in grads]).norm()
    return (limit / (norm + 1e-6)).clamp(max=1.0)


def _one_by_one(grads: Gradients) -> None:
    for grad in grads:
        grad.mul_(_factor([grad]))


def _multiply(grads: Gradients) -> None:
    factor = _factor(grads)
    for grad in grads:
        grad.data.mul_(factor)


def _together(grads: Gradients) -> None:
    torch._foreach_mul_(grads, _factor(grads))


def _odd_limit(grads: Gradients) -> None:
    torch._foreach_mul_(grads, _factor(grads, 0.2345))


def _clamp(grads: Gradients) -> None:
    for grad in grads:
        grad.data.clamp_(-0.05, 0.05)


def _noise(grads: Gradients) -> None:
    for grad in grads:
        grad.add_(torch.randn_like(grad))


def _mean(grads: Gradients) -> None:
    torch._foreach_div_(grads, 8.0)


class ClipsInside(torch.optim.SGD):
    """Clips gradients before it moves the weights: them, or copies of them."""

    clips: Callable[[Gradients], None] | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        grads = [p.grad for p in self.param_groups[0]["params"]]
        if self.clips is None:
            grads = [grad * _factor(grads) for grad in grads]
        else:
            self.clips(grads)
        for parameter, grad in zip(self.param_groups[0]["params"], grads, strict=True):
            parameter.sub_(0.01 * grad)


def _train(
    change: Callable[[Gradients], None], inside: bool = False
) -> tuple[list[float], list[float]]:
    """Norms before and after, computed in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    kind = ClipsInside if inside else torch.optim.SGD
    optimizer = kind(model.parameters(), lr=0.01)
    if inside:
        optimizer.clips = change  # type: ignore[attr-defined]
    norms: tuple[list[float], list[float]] = ([], [])

    def note(place: int) -> None:
        grads = [p.grad.double().flatten() for p in model.parameters() if p.grad is not None]
        norms[place].append(float(torch.cat(grads).norm()))

    for _ in range(12):
        optimizer.zero_grad()
        (model(torch.randn(16, 4)) - 3).square().mean().backward()
        note(0)
        if not inside:
            change([p.grad for p in model.parameters() if p.grad is not None])
        note(1)
        optimizer.step()
    return norms


CLIPS = {
    _multiply: LIMIT,
    _together: LIMIT,
    _odd_limit: 0.2345,
    _one_by_one: LIMIT,
    _clamp: 0.05,
}


@pytest.mark.parametrize("change", CLIPS)
@pytest.mark.parametrize("inside", [False, True])
def test_arithmetic_that_clips_is_on_record_as_a_clip(
    change: Callable[[Gradients], None], inside: bool, observe: Callable[..., Any]
) -> None:
    seen = observe()
    norms, _ = _train(change, inside)
    later = int(change is _odd_limit)  # one limit is no round number: the second step tells
    steps = seen.run().steps[later:]
    np.testing.assert_allclose(steps.norm, norms[later:], rtol=1e-6)
    assert set(steps.action) == {"clip"}
    np.testing.assert_allclose(steps.threshold, CLIPS[change], rtol=1e-4)
    assert (steps.coef < 0.9).all()


@pytest.mark.parametrize("change", [_noise, _mean])
def test_what_is_no_clip_is_recorded_as_the_step_got_it(
    change: Callable[[Gradients], None], observe: Callable[..., Any]
) -> None:
    seen = observe()
    _, norms = _train(change)
    seen.session._conclude()
    told = [each for each in seen.session.troubles if "by itself between backward()" in each]
    assert len(told) == (change is _noise) == len(seen.session.troubles)
    seen.session.troubles.clear()
    steps = seen.run().steps
    np.testing.assert_allclose(steps.norm, norms, rtol=1e-6)
    assert set(steps.action) == {"none"}


def _by_tokens(grads: Gradients) -> None:
    torch._foreach_mul_(grads, 350 / int(torch.randint(351, 400, (1,))))


def _frozen_row(grads: Gradients) -> None:
    grads[2][:, 0] = 0


def _signs(grads: Gradients) -> None:
    for grad in grads:
        grad.sign_().mul_(1e-3)


def _most_is_one(grads: Gradients) -> None:
    for grad in grads:
        grad.div_(grad.abs().max() * 100)


@pytest.mark.parametrize("change", [_by_tokens, _frozen_row, _signs, _most_is_one])
def test_gradients_that_vary_in_scale_are_no_clip(
    change: Callable[[Gradients], None], observe: Callable[..., Any]
) -> None:
    seen = observe()
    _, norms = _train(change)
    seen.session._conclude()
    assert "by itself between backward()" in seen.session.troubles.pop()
    steps = seen.run().steps
    np.testing.assert_allclose(steps.norm, norms, rtol=1e-6)
    assert set(steps.action) == {"none"}
    assert np.isinf(steps.threshold).all()


@pytest.mark.parametrize("factor", [1 / 1024, 0.37])
def test_one_factor_at_every_step_is_no_clip_where_a_norm_is_round_by_chance(
    factor: float, observe: Callable[..., Any]
) -> None:
    seen = observe()
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    for left in (0.5, 0.3217, 0.4123, 0.25, 0.7771):
        optimizer.zero_grad()
        (weight * (left / factor)).sum().backward()
        assert weight.grad is not None
        weight.grad.mul_(factor)
        optimizer.step()
    steps = seen.run().steps
    assert set(steps.action[1:]) == {"none"}
    assert np.isinf(steps.threshold[1:]).all()


def test_of_a_clip_that_is_known_late_the_steps_before_are_told(
    observe: Callable[..., Any],
) -> None:
    seen = observe()
    weight = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    sizes = [8.0, 6.0, 7.0, 0.2, 9.0, 5.0, 0.3, 4.0]
    for step, size in enumerate(sizes):
        optimizer.zero_grad()
        (weight * torch.tensor([1.0, 2.0, 2.0]) * size / 3).sum().backward()
        assert weight.grad is not None
        weight.grad.mul_(_factor([weight.grad], 1.1 + 0.0137 * step))
        optimizer.step()
    seen.session._conclude()
    (told,) = seen.session.troubles
    assert "norms on record of its first 3 steps are those after that" in told
    seen.session.troubles.clear()
    np.testing.assert_allclose(seen.run().steps.norm[3:], sizes[3:], rtol=1e-6)


def test_a_limit_whose_clip_is_not_seen_is_named(observe: Callable[..., Any]) -> None:
    seen = observe()
    weight = nn.Parameter(torch.ones(3))
    optimizer = ClipsInside([{"params": [weight], "max_grad_norm": 0.5}], lr=0.1)
    for _ in range(3):
        weight.grad = torch.ones(3)
        optimizer.step()
    seen.session._conclude()
    (told,) = seen.session.troubles
    assert "ClipsInside has max_grad_norm=0.5, and no clip of it was seen" in told


def test_the_first_step_of_a_second_optimizer_is_looked_at_too(observe: Callable[..., Any]) -> None:
    seen = observe()
    weights = [nn.Parameter(torch.full((3,), 2.0)) for _ in range(2)]
    optimizers = [torch.optim.SGD([weight], lr=0.1) for weight in weights]
    for _ in range(3):
        for weight, optimizer in zip(weights, optimizers, strict=True):
            optimizer.zero_grad()
            weight.square().sum().backward()
            assert weight.grad is not None
            weight.grad.mul_(_factor([weight.grad]))
            optimizer.step()
    assert set(seen.run().steps.action) == {"clip"}
