"""Several optimizers: what broke first is found in it, and explains the others."""

from __future__ import annotations

import warnings

import torch
from torch import nn

import steadygrad.torch as sg


def adversaries(broken_step: int, used_by_both: bool) -> tuple[sg.Steady, sg.Steady]:
    """Train a critic, whose loss is NaN once, and then a generator, three steps more."""
    torch.manual_seed(0)
    generator, critic = nn.Linear(2, 2), nn.Linear(2, 1)
    stranger = nn.Linear(2, 1)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01) for m in (critic, generator)]
    ours = []
    for optimizer, model in zip(optimizers, (critic, generator), strict=True):
        ours.append(
            sg.attach(optimizer, clip="none", model=model, find_nan=True, optimizer_index=len(ours))
        )
    judge = critic if used_by_both else stranger
    for step in range(broken_step + 3):
        z = torch.randn(4, 2)
        optimizers[0].zero_grad()
        made = critic(generator(z).detach())
        slope = torch.sqrt(made * (0.0 if step == broken_step else 1.0) ** 2 * made).sum()
        slope.backward()
        optimizers[0].step()
        optimizers[1].zero_grad()
        judge(generator(z)).sum().backward()
        optimizers[1].step()
    return ours[0], ours[1]


def test_the_broken_weights_of_one_optimizer_explain_the_other() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        critic, generator = adversaries(2, used_by_both=True)
    first, second = critic.origin, generator.origin
    assert first is not None
    assert second is not None
    assert (first.step, first.phase) == (2, "backward")
    assert "Sqrt" in first.operation
    assert (second.step, second.phase) == (2, "weights")
    assert second.operation == "weight, bias"
    assert "another optimizer" in str(second)


def test_an_optimizer_that_uses_none_of_them_is_not_explained_by_them() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        critic, other = adversaries(2, used_by_both=False)
    assert critic.origin is not None
    assert other.origin is None
