"""Clip groups held against the parameters of an optimizer."""

from __future__ import annotations

import warnings

import pytest
import torch

import steadygrad.torch as sg
from steadygrad.errors import NoGradientsWarning, SpecError


def hybrid(model, **muon):
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    return torch.optim.SGD([{"params": matrices, **muon}, {"params": others}], lr=0.1)


@pytest.mark.parametrize("muon", [{"name": "muon"}, {"use_muon": True}, {"muon": True}], ids=str)
def test_a_parameter_group_is_exempt_by_what_it_is_called_or_sets(training, muon):
    t = training(lambda m: hybrid(m, **muon))
    steady = sg.attach(t.optimizer, {"@group:muon": "none", "*": "norm:0.001"}, model=t.model)
    t.backward()
    before = [g.clone() for g in t.grads()]
    t.optimizer.step()
    for grad, kept in zip(t.grads(), before, strict=True):
        assert torch.equal(grad, kept) == (grad.ndim == 2)
    rest = torch.cat([g for g in t.grads() if g.ndim != 2])
    assert rest.norm().item() == pytest.approx(0.001, rel=1e-6)
    assert steady.state_dict()["policy"] == "{@group:muon: none, *: norm:0.001}"


def test_a_group_that_no_parameter_group_is_called_is_refused(training):
    t = training(hybrid)
    with pytest.raises(SpecError, match=r"no parameter group .* 'use_muon'.*'name': 'muon'"):
        sg.attach(t.optimizer, {"@group:muon": "none", "*": "norm:1.0"})
    sg.attach(t.optimizer)


def test_a_pattern_that_matches_nothing_is_told_with_names_like_it(training):
    t = training(lambda m: torch.optim.SGD(m.parameters(), lr=0.1))
    with pytest.warns(NoGradientsWarning, match=r"'0.wieght' matches none.*such as '0.weight'"):
        sg.attach(t.optimizer, {"0.wieght": "norm:1.0", "*": "none"}, model=t.model)


def test_groups_that_are_all_for_other_optimizers_are_told(training):
    t = training(lambda m: torch.optim.SGD(m.parameters(), lr=0.1))
    with pytest.warns(NoGradientsWarning, match="@Muon is for a SGD, so nothing is clipped"):
        sg.attach(t.optimizer, {"@Muon": "norm:1.0"})


def test_patterns_of_a_model_with_two_optimizers_are_not_warned_of(training):
    t = training(lambda m: torch.optim.SGD(m[0].parameters(), lr=0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        groups = {"@Muon": "none", "0.*": "norm:1.0", "2.*": "norm:2.0"}
        sg.attach(t.optimizer, groups, model=t.model)
