"""SG6xx, SG107 and SG108 on made runs: each fault, and what looks like it and is none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from steadygrad.runlog import TensorInfo


def loop(m, **facts):
    own = {"index": 0, "judged": 15, "held": 0, "emptied": 0, "passes": 1, "undivided": 0}
    several = ("logits", "loose", "stale", "summed", "targets", "broadcast", "criterion")
    top = {key: facts.pop(key) for key in several if key in facts}
    m.info["loop"] = {"optimizers": [{**own, **facts}], **top}


def test_a_loop_in_order_is_silent(make):
    m = make()
    loop(m, logits=None, loose=[], stale=[])
    assert m.ids == []


def test_gradients_that_are_never_cleared(make):
    m = make()
    loop(m, held=15)
    assert m.ids == ["SG601"]
    loop(m, held=7)  # now and then is accumulation
    assert m.ids == []
    loop(m, held=2, judged=2)
    assert m.ids == []


def test_gradients_that_are_cleared_too_early(make):
    m = make()
    m.norms[:] = np.nan
    m.columns["norm"] = np.zeros(m.steps)
    loop(m, emptied=15)
    assert m.ids == ["SG602"]
    assert "between backward and step" in m.findings[0].title
    m.info.clear()  # nobody looked at the loop: that there were none is known all the same
    assert m.ids == ["SG602"]
    assert "nothing is trained" in m.findings[0].title


def group(**more):
    return {"names": ["net.a", "net.b"], "count": 2, "elements": 20, **more}


def test_parameters_in_a_plain_list_are_an_error_and_left_out_ones_information(make):
    m = make()
    loop(m, loose=[group(container="Net.layers", of_the_model=False)])
    (found,) = m.findings
    assert (found.id, found.severity) == ("SG603", "error")
    assert "nn.ModuleList(self.layers)" in found.fixes[0]
    loop(m, loose=[group(container="", of_the_model=True)])
    assert [(f.id, f.severity) for f in m.findings] == [("SG603", "info")]


def test_an_optimizer_of_what_is_gone(make):
    m = make()
    loop(m, stale=[{"index": 0, **group()}], loose=[group(container="")])
    (found,) = m.findings
    assert (found.id, found.severity) == ("SG604", "error")
    loop(m, stale=[{"index": 1, **group()}])
    assert m.ids == []


def test_a_rate_that_is_gone(make):
    m = make()
    rates = np.full(m.steps, 1e-2)
    rates[20:] = 1e-7
    m.columns["lr"] = rates
    m.loss[20:] = m.loss[20] * np.random.default_rng(0).normal(1, 0.01, m.steps - 20)
    assert m.ids == ["SG605"]


@pytest.mark.parametrize("kind", ["late", "solved", "fallen", "falls on", "unknown"])
def test_a_decay_that_is_over_in_time_is_none(make, kind):
    m = make()
    rates = np.full(m.steps, 1e-2)
    rates[70 if kind == "late" else 20 :] = 1e-7
    m.columns["lr"] = rates
    if kind != "falls on":
        m.loss[20:] = m.loss[20]
    if kind == "solved":
        m.loss[10:] = 1e-3
    if kind == "fallen":
        m.norms[20:] *= 0.05
    if kind == "unknown":
        m.columns["lr"] = np.where(rates < 1e-3, np.nan, rates)
    assert m.ids == []


def test_a_rate_of_0_throughout(make):
    m = make()
    m.columns["lr"] = np.zeros(m.steps)
    (found,) = m.findings
    assert (found.id, found.severity) == ("SG605", "error")
    assert "0 at all 120 steps" in found.title
    weights = {t.name: 1e-3 for t in m.tensors if t.name.endswith("weight")}
    m.sample("update_ratio", weights)  # the rate of one group, and others move
    assert m.ids == []
    m.samples.clear()
    m.columns["lr"][0] = 1e-3
    assert m.ids == []


def test_a_rate_that_moves_nothing(make):
    m = make()
    m.loss[:] = 2.0
    weights = {t.name: 1e-9 for t in m.tensors if t.name.endswith("weight")}
    m.sample("update_ratio", weights)
    assert m.ids == ["SG605"]
    m.sample("update_ratio", dict.fromkeys(weights, 1e-3))
    assert "SG605" not in m.ids


def test_a_rate_of_which_few_steps_are_on_record(make):
    m = make(steps=12)
    m.loss[:] = 2.0
    weights = {t.name: 1e-5 for t in m.tensors if t.name.endswith("weight")}  # of fine-tuning
    m.sample("update_ratio", weights)
    assert "SG605" not in m.ids
    m.sample("update_ratio", dict.fromkeys(weights, 1e-6))
    assert "SG605" in m.ids


@pytest.mark.parametrize(
    ("before", "severity"), [("softmax", "error"), ("sigmoid", "error"), ("log_softmax", "info")]
)
def test_a_probability_before_a_loss_that_wants_logits(make, before, severity):
    m = make()
    loop(m, logits={"loss": "cross_entropy", "before": before})
    assert [(f.id, f.severity) for f in m.findings] == [("SG606", severity)]


def test_many_passes_undivided_are_information(make):
    m = make()
    loop(m, passes=8, undivided=15)
    assert [(f.id, f.severity) for f in m.findings] == [("SG607", "info")]
    loop(m, passes=8, undivided=0)
    assert m.ids == []
    loop(m, passes=2, undivided=15)  # two terms of a loss
    assert m.ids == []


def test_a_loss_that_is_one_sum_is_information(make):
    m = make()
    loop(m, summed=64)
    (found,) = m.findings
    assert (found.id, found.severity) == ("SG607", "info")
    assert "64 elements" in found.title


def test_what_is_no_logarithm_before_nll_loss_is_an_error(make):
    m = make()
    loop(m, logits={"loss": "nll_loss", "before": "softmax"})
    (found,) = m.findings
    assert (found.id, found.severity) == ("SG606", "error")
    assert "log-probabilities" in found.title
    assert "cross_entropy" in found.fixes[0]


def half(m, dtype):
    m.tensors = [TensorInfo(t.name, t.shape, dtype, t.module, t.position) for t in m.tensors]


def test_an_update_may_break_weights_that_gradients_left_whole(make):
    m = make()
    half(m, "float16")
    m.break_from(3)
    m.info["optimizers"] = [{"class": "Adam", "index": 0, "eps": 1e-8}]
    names = [t.name for t in m.tensors]
    m.samples["weight_norm"] = ([0, 1, 3], [[1.0] * len(names), [1.0] * len(names),
                                           [np.inf] * len(names)])  # fmt: skip
    (found,) = m.findings
    assert found.id == "SG107"
    assert "1e-08 is 0 in float16" in found.causes[0]
    m.info["optimizers"][0]["eps"] = 1e-4
    assert "larger than the weights' dtype" in m.findings[0].causes[0]
    m.columns["lr"] = np.where(np.arange(m.steps) < 2, 0.01, np.nan)
    assert m.findings[0].causes == ("the learning rate is NaN or inf",)


def test_a_rate_of_nan_breaks_the_weights_also_where_no_weight_was_sampled(make):
    m = make()
    m.break_from(51)
    m.columns["lr"] = np.where(np.arange(m.steps) < 50, 0.01, np.nan)
    (found,) = m.findings
    assert (found.id, found.causes, found.steps) == (
        "SG107", ("the learning rate is NaN or inf",), (50, 51))  # fmt: skip
    m.columns["lr"] = np.where(np.arange(m.steps) < 51, 0.01, np.nan)  # broken before it
    assert m.ids == ["SG101"]
    m.columns["lr"] = np.full(m.steps, np.nan)  # nobody told it
    assert m.ids == ["SG101"]


def test_weights_that_a_broken_gradient_broke_are_no_update_of_their_own(make):
    m = make()
    m.break_from(3)
    names = [t.name for t in m.tensors]
    m.samples["weight_norm"] = ([0, 4], [[1.0] * len(names), [np.inf] * len(names)])
    assert m.ids == ["SG101"]


def test_updates_that_are_rounded_away(make):
    m = make()
    m.loss = np.linspace(2.0, 1.9, m.steps)
    half(m, "bfloat16")
    weights = {t.name: 3e-4 for t in m.tensors if t.name.endswith("weight")}
    m.sample("update_ratio", weights)
    assert m.ids == ["SG108"]
    m.sample("update_ratio", dict.fromkeys(weights, 5e-3))
    assert m.ids == []
    m.sample("update_ratio", {**weights, "0.weight": 1.5e-3})  # one layer moves all the same
    assert m.ids == []
    m.sample("update_ratio", weights)
    half(m, "float32")
    assert m.ids == []
    half(m, "bfloat16")
    m.loss = np.linspace(2.0, 0.2, m.steps)  # enough of it arrives
    assert m.ids == []


def test_outputs_that_are_compared_with_all_targets(make):
    m = make()
    loop(m, broadcast=[32, 1])
    (found,) = m.findings
    assert (found.id, found.severity) == ("SG608", "error")
    assert "(32, 1) against (32,)" in found.title
    loop(m, broadcast=[32])
    assert "(32,) against (32, 1)" in m.findings[0].title
    loop(m, broadcast=[])
    assert m.ids == []


@pytest.mark.parametrize(
    ("lowest", "highest", "line"), [(0, 255, "target / 255"), (-1, 1, "(target - (-1)) / 2")]
)
def test_targets_out_of_range(make, lowest, highest, line):
    m = make()
    loop(m, targets={"loss": "bce_with_logits", "lowest": lowest, "highest": highest})
    (found,) = m.findings
    assert (found.id, found.severity) == ("SG609", "error")
    assert line in found.fixes[0]


@pytest.mark.parametrize("kind", ["known", "unknown", "none", "learns", "one stays", "grows again"])
def test_weights_that_decay_to_nothing(make, kind):
    m = make()
    m.loss[:] = 2.3
    sizes = np.geomspace(1, 1e-4, 8)
    if kind == "grows again":
        sizes[1::2] *= 30
    table = np.repeat(sizes[:, None], len(m.tensors), axis=1)
    if kind == "one stays":
        table[:, 2] = 1.0
    m.samples["weight_norm"] = ([0, 1, 2, 4, 8, 16, 32, 64], table)
    if kind != "unknown":
        decay = 0.0 if kind == "none" else 3.0
        m.info["optimizers"] = [{"class": "Adam", "index": 0, "weight_decay": decay}]
    if kind == "learns":
        m.loss = np.linspace(2.3, 0.3, m.steps)
    assert ("SG506" in m.ids) == (kind in ("known", "unknown")), m.ids


def keras(m, backend, **facts):
    m.info.update(framework="keras", backend=backend)
    loop(m, criterion="binary_crossentropy", **facts)


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_what_keras_was_compiled_with_against_its_last_layer(make, backend):
    m = make()
    keras(m, backend, logits={"loss": "binary_crossentropy", "before": "linear"})
    (found,) = m.findings
    assert (found.id, found.severity) == ("SG606", "error")
    assert "BinaryCrossentropy(from_logits=True)" in found.fixes[0]
    keras(m, backend, logits={"loss": "binary_crossentropy", "before": "sigmoid"})
    (found,) = m.findings
    severity = "info" if backend == "tensorflow" else "error"  # there Keras looks behind it
    assert (found.id, found.severity) == ("SG606", severity)
    assert "BinaryCrossentropy(from_logits=False)" in found.fixes[0]
    keras(m, backend, logits=None)
    assert m.ids == []
    m.loss -= 1.0
    assert m.ids == ["SG609"]
    assert "target / 255" in m.findings[0].fixes[0]


@pytest.mark.parametrize(("renewed", "fires"), [(119, True), (40, False)])
def test_an_optimizer_whose_state_is_made_at_every_step(make, renewed, fires):
    m = make()
    m.info["loop"] = {"optimizers": [{"index": 0, "renewed": renewed}]}
    assert [(f.id, f.severity) for f in m.findings] == ([("SG610", "error")] if fires else [])


@pytest.mark.parametrize(
    ("steps", "kind", "shape", "fires"),
    [
        (1, "Adam", (16,), True),
        (2, "Adam", (16,), False),
        (1, "SGD", (16,), False),
        (1, "Adam{}", (16,), False),
        (1, "Adam", None, False),  # each for a tensor of another size
    ],
)
def test_optimizers_that_take_one_step_each_are_one_that_is_made_anew(
    make, steps, kind, shape, fires
):
    m = make(steps=20)
    numbers = np.arange(m.steps) // steps
    m.columns.update(optimizer=numbers, step=np.arange(m.steps) % steps)
    m.info["optimizers"] = [{"index": i, "class": kind.format(i)} for i in range(m.steps // steps)]
    m.tensors = [
        replace(t, optimizer=i, shape=shape or (i + 1,))
        for i in range(m.steps // steps)
        for t in m.tensors
    ]
    shape = (m.steps, len(m.tensors))
    m.norms, m.max_abs, m.nonfinite, m.zeros = (
        np.ones(shape),
        np.ones(shape),
        *np.zeros((2, *shape)),
    )
    told = {f.id: f.severity for f in m.findings}
    assert told.get("SG610") == ("warning" if fires else None)


def test_steps_that_repeat_since_they_are_not_meant_to_change_anything(make):
    m = make()
    m.norms, m.loss = m.norms[np.zeros(m.steps, int)], np.full(m.steps, 2.0)
    assert "SG604" in m.ids
    m.columns["lr"] = np.zeros(m.steps)
    assert "SG604" not in m.ids
    del m.columns["lr"]
    m.columns["action"] = np.full(m.steps, "skip")
    assert "SG604" not in m.ids


@pytest.mark.parametrize(
    ("period", "noise", "unmoved", "fires"),
    [(1, 0.0, 0, True), (10, 0.0, 0, True), (10, 1e-6, 0, False), (None, 0.0, 119, True),
     (None, 0.0, 50, False)],
)  # fmt: skip
def test_weights_that_no_step_changes(make, period, noise, unmoved, fires):
    m = make()
    m.info["loop"] = {"optimizers": [{"index": 0, "unmoved": unmoved}]}
    if period:
        at = np.arange(m.steps) % period
        m.norms, m.loss = m.norms[at], m.loss[at] + noise * np.arange(m.steps)
    assert m.ids == (["SG604"] if fires else [])
