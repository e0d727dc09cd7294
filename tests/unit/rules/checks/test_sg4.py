"""SG4: thresholds, directions, and where the script's own clip calls stand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from steadygrad.calibration import calibrate
from steadygrad.errors import CalibrationError
from steadygrad.report.headline import verdict


def test_over_clipping(make):
    m = make()
    m.clip(0.1)
    found = m.findings
    assert [(f.id, f.severity) for f in found] == [("SG401", "warning")]
    assert dict(found[0].figures)["clip_rate"] == 1.0


def test_a_clip_by_arithmetic_that_bounds_each_tensor_may_act_at_every_step(make):
    m = make()
    m.clip(0.1)
    m.columns["cosine"] = np.full(len(m.loss), math.nan)
    assert "SG401" not in m.ids


@pytest.mark.parametrize(
    ("optimizer", "severity"),
    [("SGD", "warning"), ("AdamW", "info"), ("RMSprop", "info"), ("Adagrad", "info"),
     ("SparseAdam", "info"), ("Lion", "info")],
)  # fmt: skip
def test_over_clipping_shortens_the_steps_of_some_optimizers_only(make, optimizer, severity):
    m = make()
    m.clip(0.1)
    m.info["optimizers"] = [{"class": optimizer, "index": 0}]
    (found,) = m.findings
    assert (found.id, found.severity) == ("SG401", severity)
    assert ("learning rate" in found.title) == (severity == "warning")
    assert 'clip="norm:' in found.fixes[0]
    keeps_the_steps = 'group["lr"] = ' in found.fixes[0]  # of a run that learns by them
    assert keeps_the_steps == (severity == "warning")
    m.loss[:] = 2.3
    assert "lr" not in m.findings[0].fixes[0].partition("# steps get")[0]


@pytest.mark.parametrize(
    ("optimizer", "grows", "severity"),
    [("Yogi", False, "info"), ("Yogi", True, "warning"), ("Yogi", None, "warning"),
     ("SGD", False, "warning")],
)  # fmt: skip
def test_an_optimizer_of_an_unknown_name_is_told_by_its_updates(make, optimizer, grows, severity):
    m = make()
    m.clip(0.1)
    m.info["optimizers"] = [{"class": optimizer, "index": 0}]
    m.norms *= np.geomspace(1, 50, len(m.tensors))
    if grows is not None:
        sizes = [math.sqrt(math.prod(t.shape)) for t in m.tensors]
        moves = m.norms[0] if grows else sizes
        updates = {t.name: 1e-3 * move for t, move in zip(m.tensors, moves, strict=True)}
        m.sample("update_ratio", updates)
        m.sample("weight_norm", {t.name: 1.0 for t in m.tensors})
    assert [f.severity for f in m.findings if f.id == "SG401"] == [severity]


@pytest.mark.parametrize("learns", [True, False])
def test_the_threshold_of_a_run_that_learns_is_not_raised_unseen(make, learns):
    m = make()
    m.clip(1.0)  # a median coefficient of 0.29
    if not learns:
        m.loss[:] = 2.0
    (found,) = m.findings
    assert ('clip="norm:' in found.fixes[0]) == (not learns)
    assert ("steadygrad compare --clip norm:1 --clip norm:2" in found.fixes[0]) == learns


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("rnn.weight_hh_l0", "model.rnn.weight_hh_l0"),
        ("parts.0.weight_hh_l0", "model.parts[0].weight_hh_l0"),
        ("rnn-1.weight_hh_l0", 'model.get_parameter("rnn-1.weight_hh_l0")'),
    ],
)
def test_norms_that_a_recurrent_matrix_makes_are_mended_there(make, name, told):
    m = make()
    m.clip(1.0)
    m.tensors[0] = type(m.tensors[0])(name, (16, 16), "float32", "RNN", 0)
    m.sample("spectral_radius", {name: 1.1})
    assert f"orthogonal_({told})" in m.findings[0].fixes[0]
    m.samples["spectral_radius"] = (np.array([1]), m.samples["spectral_radius"][1][:1])
    m.sample("weight_norm", {name: 4.0})  # of 16 rows: the radius began at 1
    m.sample("update_ratio", {name: 0.1})
    assert "orthogonal_" not in m.findings[0].fixes[0]
    m.sample("spectral_radius", {name: 0.9})
    assert "orthogonal_" not in m.findings[0].fixes[0]


def test_a_bound_on_elements_is_not_held_against_the_norm(make):
    m = make()
    m.columns["threshold"] = np.full(m.steps, 100.0)
    assert [(f.id, f.severity) for f in m.findings] == [("SG402", "info")]
    m.info["policy"] = "value:100.0"
    assert m.ids == []


def test_methods_that_clip_by_design(make):
    m = make()
    m.clip(0.1)
    m.info["policy"] = "autoclip:10"
    assert m.ids == []


@pytest.mark.parametrize("kind", ["per_tensor", "by_value"])
def test_calls_that_bound_each_tensor_or_element_clip_by_design(make, kind):
    m = make()
    m.clip(0.1)
    for step in range(m.steps):
        m.call(step, coef=0.1, max_norm=0.1, **{kind: True})
    assert "SG401" not in m.ids
    m.events = []
    for step in range(m.steps):
        m.call(step, coef=0.1, max_norm=0.1, **{kind: False})
    assert "SG401" in m.ids


def test_a_few_clipped_steps_are_as_it_should_be(make):
    m = make()
    m.clip(float(np.quantile(m.total, 0.9)))
    assert m.ids == []


def test_a_threshold_far_over_the_peak(make):
    m = make()
    m.clip(1000.0)
    assert m.ids == ["SG402"]
    m.clip(2 * m.total.max())
    assert m.ids == []


def test_a_threshold_over_the_spikes(make):
    m = make()
    m.norms[60] *= 50
    m.clip(2 * m.total.max())
    assert m.ids == ["SG402"]


def test_a_turned_direction(make):
    m = make()
    m.columns["cosine"] = np.full(m.steps, 0.6)
    m.columns["threshold"] = np.full(m.steps, 0.01)
    m.columns["coef"] = np.full(m.steps, 0.3)
    m.info["policy"] = "value:0.01"
    found = m.findings
    assert [f.id for f in found] == ["SG403"]
    assert "53 degrees" in found[0].title


def test_two_parts_clipped_apart_by_norm_are_no_value_clipping(make):
    m = make()
    m.columns["cosine"] = np.full(m.steps, 0.6)
    m.columns["threshold"] = np.full(m.steps, 0.5)
    m.columns["coef"] = np.where(np.arange(m.steps) % 4, 1.0, 0.6)
    half = len(m.tensors) // 2
    for step in range(m.steps):
        for part in range(2):
            m.call(step, coef=0.5, params=half, passed=half, backward_since_clip=1 - part)
    assert m.ids == []
    for step in range(m.steps):
        m.call(step, coef=0.5, by_value=True)
    assert "SG403" in m.ids


def test_norms_that_end_at_a_ceiling_are_those_after_a_clip_out_of_sight(make):
    m = make()
    limit = float(np.quantile(m.total, 0.6))
    m.norms *= np.minimum(1.0, limit / m.total)[:, None]
    (found,) = m.findings
    assert (found.id, found.severity) == ("SG412", "info")
    assert dict(found.figures)["level"] == pytest.approx(limit, rel=1e-3)
    assert dict(found.figures)["share"] == pytest.approx(0.4, abs=0.05)
    assert "clipped out of sight" in verdict(m.run, m.findings).sentence
    with pytest.raises(CalibrationError, match="norms on record are those after it"):
        calibrate(m.run)


def test_elements_that_end_at_a_number_people_type_are_clamped(make):
    m = make()
    m.max_abs = np.minimum(m.max_abs, 0.2)
    (found,) = m.findings
    assert (found.id, dict(found.figures)["level"]) == ("SG412", 0.2)
    assert 'clip="value:0.2"' in found.fixes[0]
    m.max_abs = np.minimum(m.max_abs, 0.1234567)
    assert m.ids == []


@pytest.mark.parametrize(
    ("kind", "end", "clipped", "severity"),
    [
        ("SGD", 2.0, 1.0, "warning"),
        ("SGD", 0.5, 1.0, "info"),
        ("Adam", 2.0, 1.0, "info"),
        ("SGD", 2.0, 0.7, "info"),  # some steps are as long as they are
    ],
)
def test_a_clip_out_of_sight_that_makes_every_step_may_hold_the_training(
    make, kind, end, clipped, severity
):
    m = make()
    m.info["optimizers"] = [{"class": kind, "index": 0}]
    m.loss = np.linspace(2.0, end, m.steps)
    size = np.where(np.arange(m.steps) < clipped * m.steps, 1.0, np.linspace(0.9, 0.5, m.steps))
    m.norms *= (1e-3 * size / m.total)[:, None]
    (found,) = m.findings
    assert (found.id, found.severity) == ("SG412", severity)
    assert ('clip="norm:1.0"' in found.fixes[0]) == (severity == "warning")


@pytest.mark.parametrize(("dtype", "fires"), [("float32", True), ("float16", False)])
def test_a_clamp_may_be_small_where_float16_does_not_make_magnitudes_alike(make, dtype, fires):
    m = make()
    m.tensors = [replace(tensor, dtype=dtype) for tensor in m.tensors]
    m.max_abs = np.minimum(m.max_abs, 5e-5)
    assert m.ids == (["SG412"] if fires else [])


@pytest.mark.parametrize(
    ("part", "end", "kind", "severity", "first"),
    [(0.95, 2.0, "SGD", "warning", "norm:1.0"), (0.95, 2.0, "Adam", "info", "norm:1.0"),
     (0.95, 0.5, "SGD", "info", "norm:1.0"), (0.3, 2.0, "SGD", "info", "value:0.2")],
)  # fmt: skip
def test_a_clamp_that_leaves_the_signs_alone_is_too_tight(make, part, end, kind, severity, first):
    m = make()
    m.info["optimizers"] = [{"class": kind, "index": 0}]
    m.loss = np.linspace(2.0, end, m.steps)
    m.max_abs[:] = 0.2
    sizes = np.sqrt([math.prod(tensor.shape) for tensor in m.tensors])
    m.norms = part * 0.2 * sizes * np.random.default_rng(0).uniform(0.9, 1, m.norms.shape)
    (found,) = m.findings
    assert (found.id, found.severity) == ("SG412", severity)
    assert f'clip="{first}"' in found.fixes[0]


def test_a_gradient_that_is_constant_by_nature_is_not_clipped(make):
    m = make()
    m.norms[:] = m.norms[0]
    assert "SG412" not in m.ids
    m.max_abs[:] = 8.0
    assert "SG412" not in m.ids
    m = make()
    m.clip(float(np.quantile(m.total, 0.6)))  # a clip on record
    assert "SG412" not in m.ids


def test_what_a_call_returns_and_no_step_is_given(make):
    m = make()
    calls(m, call="tf.clip_by_global_norm", discarded=True)
    (found,) = m.findings
    assert (found.id, found.severity) == ("SG709", "error")
    m.events = []
    calls(m, call="tf.clip_by_global_norm", discarded=False)
    assert m.ids == []


EMPTY = {"backward_since_step": 0, "after_step": True, "params": 0}
STALE = {"backward_since_step": 0, "after_step": True}


def calls(m, first=0, **data):
    for step in range(first, m.steps):
        m.call(step, **data)


def test_a_call_in_its_place_is_no_finding(make):
    m = make()
    calls(m)
    assert m.ids == []


def test_before_backward(make):
    m = make()
    m.call(0, backward_since_step=0, params=0)
    calls(m, first=1, **EMPTY)
    assert m.ids == ["SG404"]


def test_gradients_of_the_step_before_where_another_optimizer_has_had_a_backward(make):
    m = make()
    m.call(0, params=0)
    for step in range(1, m.steps):
        for place in range(2):
            m.call(step, norm=m.total[step - 1], backward_since_step=place + 1, repeated=place)
    assert m.ids == ["SG404"]
    assert "of these parameters" in m.findings[0].evidence[0]


def test_after_the_step(make):
    m = make()
    calls(m, first=1, **STALE)
    assert m.ids == ["SG405"]


def test_before_unscale(make):
    m = make()
    calls(m, unscaled=False)
    m.columns["loss_scale"] = np.full(m.steps, 1024.0)
    assert m.ids == ["SG406"]


def test_once_per_micro_batch(make):
    m = make()
    for step in range(m.steps):
        for micro in range(3):
            m.call(step, backward_since_step=micro + 1, repeated=micro)
    assert m.ids == ["SG407"]


def test_part_of_the_parameters(make):
    m = make()
    calls(m, params=4)
    assert [(f.id, f.severity) for f in m.findings] == [("SG408", "warning")]
    m.norms[60] *= 50  # what the whole of it would have held back
    first = m.findings[0]
    assert (first.id, first.severity) == ("SG408", "error")


def test_parts_that_make_a_whole(make):
    m = make()
    for step in range(m.steps):
        m.call(step, params=4)
        m.call(step, params=8)
    assert m.ids == []


def test_several_clips_of_parts_are_told_together(make):
    m = make()
    m.clip(0.1)
    for step in range(m.steps):
        m.call(step, params=4, max_norm=0.5)
        m.call(step, params=1, max_norm=0.1)
    told = {f.id: f.evidence[0] for f in m.findings}
    assert told["SG408"].startswith("The 2 calls together reach 5 of ")
    assert told["SG401"].startswith("Thresholds 0.1, 0.5, each for a part of the parameters;")


def test_twice(make):
    m = make()
    for step in range(m.steps):
        m.call(step)
        m.call(step, repeated=1, backward_since_clip=0)
    assert m.ids == ["SG409"]


@pytest.mark.parametrize("given", [{"on_gradients": True, "params": 0}, {"passed": 0, "params": 0}])
def test_nothing_to_clip(make, given):
    m = make()
    calls(m, **given)
    assert m.ids == ["SG410"]


@pytest.mark.parametrize("beside", [{"params": 0, "passed": 1}, {"params": 0, "passed": 0}])
def test_a_call_for_a_frozen_part_beside_others_is_no_fault(make, beside):
    """`for p in model.parameters(): clip_grad_norm_(p, 1)`, or a group that is empty."""
    m = make()
    kinds = [{"count": m.steps, "no_gradients": True}, {"count": m.steps}]
    for step in range(m.steps):
        m.call(step)
        m.call(step, **beside)
    m.info["clip_calls"] = kinds
    assert m.ids == []
    calls(m, on_gradients=True, params=0)
    assert m.ids == ["SG410"]


def test_an_infinite_threshold(make):
    m = make()
    calls(m, max_norm=float("inf"))
    assert m.ids == ["SG411"]


def test_one_odd_call_is_no_fault(make):
    m = make()
    calls(m)
    m.events[7].data.update(EMPTY)
    assert m.ids == []
