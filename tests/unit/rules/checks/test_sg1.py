"""SG1: what is not finite, and what float16 cannot hold."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from steadygrad.runlog import Event
from steadygrad.vocabulary import NAN_LOSS


def test_a_sudden_nan_is_an_operation(make):
    m = make()
    m.break_from(60)
    found = m.findings
    assert [f.id for f in found] == ["SG101"]
    assert found[0].severity == "error"
    assert found[0].steps == (60,)
    assert found[0].tensors[0] == "5.bias"  # the nearest to the loss
    assert "weights are lost since step 60" in " ".join(found[0].evidence)


def test_a_run_that_begins_broken_has_no_good_step(make):
    m = make()
    m.break_from(0)
    assert any("No step of this run was good." in s for s in m.findings[0].evidence)


def test_only_the_broken_tensors_are_named(make):
    m = make()
    m.norms[60:, :4] = np.nan
    m.nonfinite[60:, :4] = 1
    assert m.findings[0].tensors == ("1.bias", "1.weight", "0.bias", "0.weight")


def test_a_skipped_nan_is_only_a_warning(make):
    m = make()
    m.break_from(60, 61)
    m.columns["action"] = np.where(np.arange(m.steps) == 60, "skip", "none")
    assert [(f.id, f.severity) for f in m.findings] == [("SG101", "warning")]


@pytest.mark.parametrize(
    ("framework", "loss", "scaled", "severity"),
    [
        ("torch", 1.0, False, "error"),  # the step that is on record was taken
        ("jax", 1.0, False, "warning"),
        ("jax", None, False, "warning"),  # no loss is on record, and nothing broke again
        ("jax", 1.0, True, None),  # a loss scale at work
        ("jax", np.nan, True, None),
        ("jax", np.nan, False, "error"),  # the weights of few batches may hold it
    ],
)
def test_a_step_of_jax_after_which_weights_are_sound_was_dropped(
    make, framework, loss, scaled, severity
):
    m = make()
    m.info["framework"] = framework
    m.break_from(60, 61)
    if loss is None:
        m.loss[:] = np.nan
    else:
        m.break_from(90, 91)
        m.loss[90] = loss
        m.events.append(Event(90, 0.0, NAN_LOSS, {}))
    m.info["amp"] = scaled
    found = [f for f in m.findings if f.id == "SG101"]
    assert [f.severity for f in found] == [severity] * (severity is not None)
    dropped = any("must have dropped them" in s for f in found for s in f.evidence)
    assert dropped == (severity == "warning")


def test_a_step_of_jax_that_broke_the_weights_was_not_dropped(make):
    m = make()
    m.info["framework"] = "jax"
    m.break_from(60)
    assert [(f.id, f.severity) for f in m.findings] == [("SG101", "error")]


def test_inf_before_nan_is_told(make):
    m = make()
    m.break_from(60, 61, np.inf)
    m.break_from(61)
    assert any(
        "inf came first, at step 60; NaN followed at step 61" in s for s in m.findings[0].evidence
    )


def test_a_nan_after_growth_is_an_explosion(make):
    m = make()
    m.norms[50:60] *= np.exp(np.arange(10))[:, None]
    m.break_from(60)
    assert m.ids == ["SG102"]
    assert m.findings[0].steps[-1] == 60


def test_broken_weights_come_before_broken_gradients(make):
    m = make()
    m.break_from(0)
    m.sample("weight_norm", {"0.weight": np.inf, "1.weight": 1.0})
    assert m.ids == ["SG103"]
    m.sample("weight_norm", {"0.weight": 1.0, "1.weight": 1.0})
    assert m.ids == ["SG101"]


def test_weights_that_break_after_the_gradients_are_a_consequence(make):
    m = make()
    m.break_from(60)
    m.sample("weight_norm", {"0.weight": np.inf}, steps=(64,))
    assert m.ids == ["SG101"]


def test_a_loss_may_break_alone(make):
    m = make()
    m.loss[[30, 50]] = np.inf
    assert m.ids == ["SG104"]
    assert m.findings[0].steps == (30, 50)


def test_losses_that_were_never_known_are_no_finding(make):
    m = make()
    m.loss[:] = np.nan
    assert m.ids == []


def test_a_loss_that_was_told_and_is_nan_is_not_an_unknown_one(make):
    m = make()
    m.loss[4:] = np.nan
    assert m.ids == []  # one in thirty was told: nothing says that the others were
    m.events.append(Event(4, 0.0, NAN_LOSS, {"optimizer": 0}))
    (found,) = m.findings
    assert (found.id, found.severity) == ("SG104", "error")
    assert "97 %" in found.evidence[0]
    assert "does not make them right" in found.evidence[1]


def to_half(m):
    m.tensors = [replace(t, dtype="float16") for t in m.tensors]


def test_float16_overflow(make):
    m = make()
    to_half(m)
    m.max_abs[55:60] = 50000.0
    m.break_from(60)
    assert m.ids == ["SG105"]


def test_an_ordinary_nan_in_float16_is_no_overflow(make):
    m = make()
    to_half(m)
    m.break_from(60)
    assert m.ids == ["SG101"]


def test_float16_underflow(make):
    m = make()
    to_half(m)
    m.norms *= 1e-6
    m.max_abs[:] = 1e-6
    m.zeros[:] = 0.6
    assert m.ids == ["SG106"]
    m.max_abs[:] = 1e-2  # as large as that, zeros are another matter
    assert "SG106" not in m.ids


@pytest.mark.parametrize("share", [0.02, 0.2])
def test_a_scaler_that_searches_is_left_alone(make, share):
    m = make()
    hit = np.arange(m.steps) % round(1 / share) == 3
    m.norms[hit] = np.inf
    m.nonfinite[hit] = 1
    m.columns.update(action=np.where(hit, "skip", "none"), loss_scale=np.full(m.steps, 1024.0))
    assert m.ids == []


def test_the_threshold_after_an_explosion_is_of_the_norms_before_it(make):
    m = make()
    m.norms *= np.geomspace(1, 1e30, m.steps)[:, None]
    m.break_from(100)
    (found,) = m.findings
    assert found.id == "SG102"
    limit = float(re.search(r"norm:([^\"]+)", found.fixes[0]).group(1))
    assert limit < 20 * m.total[0]


@pytest.mark.parametrize(("first", "title"), [(4e7, "huge from the start"), (7e3, "exploded")])
def test_norms_that_the_first_steps_made_huge_are_the_rates_and_not_the_weights(make, first, title):
    m = make()
    m.break_from(3)
    m.norms[:3] = np.array([[first], [1e9], [1e15]]) / np.sqrt(m.norms.shape[1])
    m.columns["norm"] = m.total
    m.info["framework"] = "jax"
    found = m.findings[0]
    assert (found.id, title in found.title) == ("SG102", True)
    assert found.fixes[0].startswith("learning_rate =") is (first < 1e6)


@pytest.mark.parametrize(
    ("dtype", "rate", "kind", "fires"),
    [("bfloat16", 2e-5, "Adam", True), ("float32", 2e-5, "Adam", False),
     ("bfloat16", 2e-3, "Adam", False), ("bfloat16", 1e-5, "SGD", True),
     ("bfloat16", 5e-4, "SGD", False)],
)  # fmt: skip
def test_updates_that_nobody_sampled_are_reckoned_from_the_rate(make, dtype, rate, kind, fires):
    m = make()
    m.tensors = [replace(tensor, dtype=dtype) for tensor in m.tensors]
    m.info.update(framework="jax", optimizers=[{"index": 0, "class": kind}])
    m.columns["lr"] = np.full(m.steps, rate)
    m.sample("weight_norm", {t.name: 2.0 for t in m.tensors}, steps=(0,))
    m.loss[:] = 2.3
    assert ("SG108" in m.ids) == fires
    if kind == "SGD":
        m.zeros[:] = 0.5  # gradients too small for their dtype tell nothing of the rate
        assert "SG108" not in m.ids
    m.info["framework"] = "torch"
    assert "SG108" not in m.ids  # there updates are sampled
    m.sample("update_ratio", {t.name: 1e-7 for t in m.tensors}, steps=(0, 1))
    assert "SG108" not in m.ids  # too few of them


@pytest.mark.parametrize(
    ("framework", "dropped", "told"),
    [("jax", False, True), ("torch", False, False), ("jax", True, False)],
)
def test_an_overflow_under_a_scale_of_flax_that_was_applied_is_to_be_dropped(
    make, framework, dropped, told
):
    m = make()
    m.info.update(framework=framework, amp=True)
    m.columns["loss_scale"] = np.ones(m.steps)  # compiled code does not tell it
    m.break_from(0, 60 if dropped else None)
    if dropped:
        m.columns["action"] = np.where(np.arange(m.steps) < 60, "skip", "none")
    else:
        m.loss[1:] = np.nan
    found = m.findings[0]
    assert (found.id, found.severity) == ("SG101", "warning" if dropped else "error")
    assert ("jnp.where, is_finite" in found.fixes[0]) == told
    assert "SG503" not in m.ids
