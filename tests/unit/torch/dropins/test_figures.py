"""measure: names and figures, from whatever holds gradients."""

from __future__ import annotations

import math

import pytest
import torch

import steadygrad.torch as sg
from steadygrad.errors import UsageError


def test_named_parameters_stand_for_their_gradients():
    model = torch.nn.Linear(2, 1)
    model(torch.tensor([[3.0, 4.0]])).sum().backward()
    stats = sg.measure(model.named_parameters())
    assert stats.names == ("weight", "bias")
    assert stats.norms.tolist() == [5.0, 1.0]
    assert stats.total_norm.item() == pytest.approx(math.sqrt(26))
    assert stats.sizes == (2, 1)
    assert (stats.norms.dtype, stats.zeros.dtype) == (torch.float64, torch.int64)


def test_parameters_without_gradients_are_left_out():
    model = torch.nn.Linear(2, 1)
    model.bias.grad = torch.tensor([2.0])
    assert sg.measure(model.parameters()).norms.tolist() == [2.0]


def test_other_tensors_are_measured_themselves():
    broken = torch.tensor([0.0, -7.0, math.nan, math.inf])
    stats = sg.measure({"a": broken, "b": torch.zeros(2, 2)})
    assert stats.names == ("a", "b")
    assert math.isnan(stats.norms[0])
    assert stats.max_abs.tolist() == [7.0, 0.0]
    assert stats.nonfinite.tolist() == [2, 0]
    assert stats.zeros.tolist() == [1, 4]
    alone = sg.measure(torch.tensor([3.0, 4.0]))
    assert (alone.names, alone.total_norm.item()) == (("0",), 5.0)
    weight = torch.nn.Parameter(torch.ones(2))
    assert sg.measure([weight * 3.0]).max_abs.tolist() == [3.0]  # an activation


def test_nothing_is_changed_by_measuring():
    grad = torch.randn(100, generator=torch.Generator().manual_seed(0))
    version, before = grad._version, grad.clone()
    sg.measure([grad], 3.0)
    assert grad._version == version
    assert torch.equal(grad, before)


def test_what_is_no_tensor_is_refused():
    with pytest.raises(UsageError, match=r"type measure\(model.named_parameters"):
        sg.measure(torch.nn.Linear(1, 1))
    with pytest.raises(UsageError, match=r"needs tensors or .name, tensor. pairs"):
        sg.measure([("a", 1.0)])
