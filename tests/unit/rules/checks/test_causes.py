"""Which of several rules is right, where the same run looks like more than one fault."""

from __future__ import annotations

import numpy as np
import pytest

from steadygrad.rules import diagnose
from steadygrad.runlog import Run, TensorInfo


def named(found):
    return [(f.id, f.severity) for f in found]


def test_a_loss_of_0_in_float16_is_a_count_that_overflowed(make):
    m = make()
    m.tensors = [TensorInfo(t.name, t.shape, "float16", t.module, t.position) for t in m.tensors]
    m.norms[:], m.max_abs[:], m.zeros[:], m.loss[:] = 0.0, 0.0, 1.0, 0.0
    (found,) = m.findings
    assert (found.id, found.severity) == ("SG105", "error")
    assert "float()" in found.fixes[0]


def test_zeros_from_the_first_step_are_built_in(make):
    m = make()
    m.loss[:] = 3.0
    m.norms[:], m.zeros[:] = 0.0, 1.0
    (built_in,) = m.findings
    assert named([built_in]) == [("SG302", "error")]
    assert "Softplus" in built_in.fixes[0]
    assert not any("lr" in fix for fix in built_in.fixes)
    alive = make()
    alive.loss[:] = 3.0
    alive.norms[20:], alive.zeros[20:] = 0.0, 1.0
    assert "lr" in alive.findings[0].fixes[0]


def test_a_spike_explains_what_died_of_it(make):
    m = make()
    m.loss[40:] = 30.0
    m.norms[40] *= 300
    m.norms[41:] *= 20  # the aftermath hides it from its neighbours on that side
    m.norms[80:, :], m.zeros[80:, :] = 0.0, 1.0
    first, *rest = m.findings
    assert (first.id, first.severity) == ("SG202", "error")
    assert "the loss never came back" in first.title
    assert [f.id for f in rest] == ["SG302"]


def test_a_new_level_is_no_spike(make):
    m = make()
    m.norms[60:] *= 20
    assert m.ids == []


def test_large_first_steps_of_a_model_that_began_well(make):
    m = make(layers=12)
    m.tensors = [
        TensorInfo(t.name, t.shape, t.dtype, "LayerNorm" if t.name == "3.bias" else t.module,
                   t.position)
        for t in m.tensors
    ]  # fmt: skip
    m.loss[:] = 2.8
    depth = np.repeat(np.geomspace(1e-4, 1.0, 12), 2)
    m.norms[4:] *= depth
    weights = {t.name: 0.06 for t in m.tensors if t.name.endswith("weight")}
    m.sample("update_ratio", weights, steps=(0, 1, 2, 64))
    (found,) = m.findings
    assert named([found]) == [("SG502", "error")]
    assert "LambdaLR" in found.fixes[0]
    m.norms[:4] *= depth  # so it was from the start: depth itself
    assert m.ids == ["SG301"]


def test_a_norm_that_no_training_begins_with_is_an_explosion(make):
    m = make()
    m.norms[0] *= 1e8
    m.break_from(1)
    (found,) = m.findings
    assert found.id == "SG102"
    assert "huge from the start" in found.title


def test_layers_that_are_too_small_together(make):
    m = make(layers=16)
    m.loss[:] = 2.3
    weights = {t.name: 0.03 for t in m.tensors if t.name.endswith("weight")}
    m.sample("weight_std", weights)  # 0.12 of what their fan-in calls for
    assert m.ids == ["SG501"]
    few = make(layers=4)
    few.loss[:] = 2.3
    few.sample("weight_std", dict(list(weights.items())[:4]))
    assert few.ids == []


def test_a_good_fit_is_no_trouble(make):
    m = make()
    m.loss = 0.1 * np.geomspace(1.0, 1e-5, m.steps)
    weights = {t.name: 0.012 for t in m.tensors if t.name.endswith("weight")}
    m.sample("weight_std", weights)
    assert m.ids == []


def two(make, at, weights=(1.0, 1.0)):
    """Two optimizers that take turns; each breaks at a place of its own, None for never."""
    players = [make(seed=seed) for seed in (0, 1)]
    for player, place in zip(players, at, strict=True):
        if place is not None:
            player.break_from(place)
    count = players[0].steps
    order = np.argsort(np.r_[np.arange(count), np.arange(count) + 0.5], kind="stable")
    tensors = [
        TensorInfo(f"{i}.{t.name}", t.shape, t.dtype, t.module, t.position, i)
        for i, p in enumerate(players)
        for t in p.tensors
    ]
    half = len(players[0].tensors)
    norms = np.full((2 * count, 2 * half), np.nan)
    nonfinite = np.zeros_like(norms)
    for i, p in enumerate(players):
        norms[i * count : (i + 1) * count, i * half : (i + 1) * half] = p.norms
        nonfinite[i * count : (i + 1) * count, i * half : (i + 1) * half] = p.nonfinite
    columns = {
        "norm": np.r_[players[0].total, players[1].total],
        "loss": np.r_[players[0].loss, players[1].loss],
        "step": np.tile(np.arange(count), 2),
        "optimizer": np.repeat([0, 1], count),
        "nonfinite": nonfinite.sum(axis=1),
    }
    return Run.from_arrays(
        steps={name: np.asarray(column)[order] for name, column in columns.items()},
        tensors=tensors,
        tensor_norms=norms[order],
        tensor_max_abs=norms[order],
        tensor_nonfinite=nonfinite[order],
        tensor_zeros=np.zeros_like(norms),
    )


@pytest.mark.parametrize(("at", "first"), [((60, 61), 0), ((61, 60), 1)])
def test_what_broke_first_explains_what_broke_later(make, at, first):
    found = diagnose(two(make, at))
    assert [(f.optimizer, f.severity) for f in found] == [(first, "error"), (1 - first, "info")]
    assert f"Optimizer {first}'s gradients broke before" in found[1].evidence[0]


def test_one_break_is_told_as_it_is(make):
    assert named(diagnose(two(make, (None, 60)))) == [("SG101", "error")]
