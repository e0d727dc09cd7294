"""Chains and groups: each member decides on what the one before left, or on its own tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import steadygrad.torch as sg
from steadygrad.errors import SpecError
from steadygrad.policies import Chain, ClipNorm, Groups, NoClip, SkipSpike, parse


def test_a_skipped_step_is_unknown_to_those_behind(trace: Any, spiky: Any) -> None:
    chained = trace(parse("skip+zclip:max_norm=inf"), spiky)
    alone = trace(parse("zclip:max_norm=inf"), spiky[~chained.skips])
    assert chained.skips.sum() >= 5
    np.testing.assert_array_equal(chained.thresholds[~chained.skips][-1], alone.thresholds[-1])
    for key, value in alone.states[-1].items():
        np.testing.assert_array_equal(chained.states[-1][f"1/{key}"], value)


def test_those_behind_see_the_norm_that_is_left(trace: Any) -> None:
    rows = np.array([[3.0, 4.0, 0.0], [0.3, 0.4, 0.0]])
    got = trace(parse("norm:2.0+norm:1.0"), rows)
    np.testing.assert_allclose(got.coefs[:, 0], [0.2, 1.0], rtol=1e-15)
    np.testing.assert_allclose(got.thresholds, [1.0, 1.0], rtol=1e-15)
    by_tensor = trace(parse("tensor-norm:1.0+norm:1.0"), rows)
    np.testing.assert_allclose(
        by_tensor.coefs[0], [1 / 3 / np.sqrt(2), 1 / 4 / np.sqrt(2), 1 / np.sqrt(2)], rtol=1e-15
    )


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("value:1.0+norm:1.0", "only stand last"),
        ("norm:1.0,p=inf+norm:1.0", "same p"),
        ("skip+", "no method named"),
    ],
)
def test_chains_that_cannot_be(spec: str, reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        parse(spec)


def test_a_chain_needs_links() -> None:
    with pytest.raises(SpecError, match="two methods"):
        Chain((ClipNorm(1.0),))
    with pytest.raises(SpecError, match="cannot hold"):
        Chain((SkipSpike(), Chain((SkipSpike(), ClipNorm(1.0)))))


def test_plus_in_a_number_is_no_chain() -> None:
    assert parse("norm:1e+5") == ClipNorm(1e5)
    assert parse("skip+norm:1e+5").spec() == "skip+norm:100000.0"


@pytest.mark.parametrize(
    "spec",
    [
        "zclip:z=3.0,alpha=0.9",
        "autoclip:percentile=25.0,window=100",
        "adagc:beta=0.9",
        "skip:rule=sigma",
        "agc:exempt=head.*|fc.*,axes=optax",
        "spam:theta=100.0",
        "update-rms:limit=2.0",
        "norm-schedule:10.0,to=2.0,over=50",
        "auto:window=64",
        "skip+norm:1.0,p=inf",
        "{embed.*: none, @Muon: none, *: skip+norm:1.0}",
    ],
)
def test_specs_come_back(spec: str) -> None:
    assert parse(spec).spec() == spec
    assert parse(parse(spec).spec()) == parse(spec)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("zclip:alpha=1.5", "between 0 and 1"),
        ("zclip:warmup=0", "whole number >= 1"),
        ("autoclip:200", "from 0 to 100"),
        ("skip:rule=mean", "mad, sigma"),
        ("agc:axes=rows", "timm, paper, optax"),
        ("auto:nearest=5.0", "nearest <= farthest"),
        ("norm-schedule:inf", "finite"),
        ("{a: norm:1.0", "closing brace"),
        ("{a norm}", "pattern: spec"),
        ("{: none}", "pattern"),
    ],
)
def test_errors_say_what_to_type(spec: str, reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        parse(spec)


def test_groups_by_optimizer() -> None:
    groups = parse("{@Muon: none, embed.*: value:0.5, *: norm:1.0}")
    assert isinstance(groups.for_optimizer("Muon"), NoClip)
    rest = groups.for_optimizer("AdamW")
    assert isinstance(rest, Groups)
    assert rest.spec() == "{embed.*: value:0.5, *: norm:1.0}"
    assert parse("{@Muon: none}").for_optimizer("SGD") == NoClip()


def test_muons_matrices_are_exempt_on_torch() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    muon = torch.optim.Muon([model.weight], lr=0.1)
    adam = torch.optim.AdamW([model.bias], lr=0.1)
    clip = "{@Muon: none, *: norm:0.001}"
    with sg.attach(muon, clip=clip) as first, sg.attach(adam, clip=clip) as second:
        model(torch.ones(2, 4)).square().sum().backward()
        muon.step()
        adam.step()
        assert (first.last.action, second.last.action) == ("none", "clip")


def test_a_chain_that_ends_in_elements_on_torch() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    with sg.attach(optimizer, clip="norm:1.0+value:0.6"):
        weight.grad = torch.tensor([0.0, 6.0, 8.0])
        optimizer.step()
    np.testing.assert_allclose(weight.detach().numpy(), [0.0, -0.6, -0.6], rtol=1e-7)


@pytest.mark.parametrize("spec", ["spam:theta=1.0", "update-rms"])
def test_the_second_moment_reaches_the_policy_on_torch(spec: str) -> None:
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.Adam([weight], lr=0.0)
    actions = []
    with sg.attach(optimizer, clip=spec) as steady:
        for step in range(40):
            weight.grad = torch.full((4,), 1000.0 if step == 30 else 1.0)
            optimizer.step()
            actions.append(steady.last.action)
    assert actions[30] == "clip"
    assert actions[:20] == ["none"] * 20
