"""A small seeded training, and bit comparison of everything that an optimizer may change."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from steadygrad.torch.step.snapshot import same_bits


class Training:
    """A two-layer net on fixed data with any optimizer.

    Args:
        make: makes the optimizer from the model.
        device_dtype: dtype of the weights.
    """

    def __init__(self, make, dtype=torch.float32):
        generator = torch.Generator().manual_seed(7)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
        ).to(dtype)
        with torch.no_grad():
            for weight in self.model.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.5)
        self.x = torch.randn(16, 4, generator=generator).to(dtype)
        self.y = torch.randn(16, 1, generator=generator).to(dtype)
        self.optimizer = make(self.model)

    def loss(self, factor=1.0):
        return ((self.model(self.x) - self.y) ** 2).mean() * factor

    def backward(self, factor=1.0):
        self.optimizer.zero_grad()
        loss = self.loss(factor)
        loss.backward()
        return loss

    def step(self, factor=1.0):
        self.backward(factor)
        self.optimizer.step()

    def closure(self, factors=(1.0,)):
        """A closure whose n-th evaluation scales the loss by the n-th factor, the last for good."""
        left = list(factors)

        def evaluate():
            return self.backward(left.pop(0) if len(left) > 1 else left[0])

        return evaluate

    def grads(self):
        return [p.grad for p in self.model.parameters()]

    def norm(self):
        parts = [g.double().norm().item() ** 2 for g in self.grads() if g is not None]
        return math.sqrt(sum(parts))

    def everything(self):
        """Copies of weights, optimizer state and hyper-parameters."""
        weights = [p.detach().clone() for p in self.model.parameters()]
        return copy.deepcopy([weights, self.optimizer.state_dict()])

    def same_as(self, other):
        return same_bits(
            self.everything(), other if isinstance(other, list) else other.everything()
        )


@pytest.fixture
def training():
    """Makes a `Training`."""
    return Training


@pytest.fixture
def sgd():
    """A `Training` by SGD with momentum."""
    return Training(lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
