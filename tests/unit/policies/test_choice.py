"""One front door for what a user types, with one default everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import steadygrad.torch as sg
from steadygrad.errors import SpecError, UsageError
from steadygrad.policies import AGC, ClipNorm, Groups, NoClip
from steadygrad.policies.choice import Choice, resolve, skips_by_itself


@pytest.mark.parametrize(
    ("clip", "optimizer", "policy", "mode"),
    [
        ("norm:1.0", "", ClipNorm(1.0), "skip"),
        (ClipNorm(2.0), "SGD", ClipNorm(2.0), "skip"),
        ("none", "", NoClip(), "propagate"),
        (NoClip(), "SGD", NoClip(), "propagate"),
        ({"@Muon": "none", "*": "agc"}, "Muon", NoClip(), "propagate"),
        ({"@Muon": "none", "*": "agc"}, "AdamW", Groups((("*", AGC()),)), "skip"),
        ({"@Muon": "none", "*": "agc"}, "", Groups((("*", AGC()),)), "skip"),
    ],
)
def test_defaults(clip: object, optimizer: str, policy: object, mode: str) -> None:
    choice = resolve(clip, None, optimizer)  # type: ignore[arg-type]
    assert choice == Choice(policy, mode)  # type: ignore[arg-type]
    assert choice.only_observes == (mode == "propagate")
    assert choice.may_skip == (mode == "skip")


@pytest.mark.parametrize("mode", ["skip", "raise", "zero", "propagate"])
def test_a_word_that_is_typed_stands(mode: str) -> None:
    assert resolve("none", mode).on_nonfinite == resolve("norm:1.0", mode).on_nonfinite == mode
    assert not resolve("norm:1.0", mode).only_observes


def test_what_is_no_choice_is_refused() -> None:
    with pytest.raises(UsageError, match=r"on_nonfinite must be one of skip, .*got 'drop'"):
        resolve("none", "drop")
    with pytest.raises(UsageError, match="clip must be a spec such as"):
        resolve(1.0)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="no method named"):
        resolve("nrom:1.0")


def test_methods_that_drop_steps_are_told_apart() -> None:
    assert resolve("skip", "propagate").may_skip
    assert not resolve("norm:1.0", "propagate").may_skip
    assert skips_by_itself(resolve("{a: norm:1.0, *: skip}").policy)


def test_attach_takes_the_default_of_the_front_door() -> None:
    for clip in ("none", "norm:1.0"):
        weight = torch.nn.Parameter(torch.ones(2))
        optimizer = torch.optim.SGD([weight], lr=1.0)
        with sg.attach(optimizer, clip=clip):
            weight.grad = torch.tensor([float("nan"), 1.0])
            optimizer.step()
        skipped = resolve(clip).on_nonfinite == "skip"
        assert np.isnan(weight.detach().numpy()).any() != skipped
