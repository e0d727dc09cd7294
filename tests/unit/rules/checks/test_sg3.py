"""SG3: what is too small, and what only looks so."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest


def vanish(m, ratio=1e6):
    m.norms *= np.repeat(np.geomspace(1 / ratio, 1, m.layers), 2)[None]


def test_vanishing_with_a_stalled_loss(make):
    m = make()
    vanish(m)
    m.loss[:] = 2.3
    assert m.ids == ["SG301"]
    assert m.findings[0].severity == "error"


def test_the_same_norms_in_a_run_that_learns(make):
    m = make()
    vanish(m)
    assert m.ids == []


def test_first_layers_that_get_nothing_are_worth_a_note_where_the_last_ones_learn(make):
    m = make()
    vanish(m, 1e12)
    assert [(f.id, f.severity) for f in m.findings] == [("SG301", "info")]
    assert "learn alone" in m.findings[0].title
    assert "falls" in m.findings[0].evidence[-1]


def test_small_everywhere_is_converged_not_vanishing(make):
    m = make()
    m.norms *= 1e-7
    m.loss[:] = 0.001
    assert m.ids == []


def test_without_a_loss_the_ratio_must_be_larger(make):
    m = make()
    vanish(m, 1e3)
    m.loss[:] = np.nan
    assert m.ids == []
    vanish(m, 1e3)
    assert m.ids == ["SG301"]


@pytest.mark.parametrize(("ratio", "fires"), [(1e-2, True), (1e-4, False)])
def test_a_learning_rate_too_small_to_move_anything_explains_the_stall(make, ratio, fires):
    m = make()
    vanish(m)
    m.loss[:] = 2.3
    m.sample("update_ratio", {t.name: ratio for t in m.tensors})
    assert m.ids == (["SG301"] if fires else [])


@pytest.mark.parametrize(("ratio", "fires"), [(1e6, True), (1e3, False)])
def test_a_loss_of_either_sign_cannot_deny_what_vanishes(make, ratio, fires):
    m = make()
    vanish(m, ratio)
    m.loss = np.linspace(-0.05, -0.5, m.steps)  # a policy's surrogate: it fell, and says nothing
    assert [(f.id, f.severity) for f in m.findings] == ([("SG301", "warning")] if fires else [])
    assert not fires or "either sign" in m.findings[0].evidence[-1]


def test_a_gradient_that_has_gone_does_not_hide_what_went_before(make):
    m = make()
    vanish(m)
    m.loss[:] = 2.3
    m.norms[40:] = 1e-12
    assert m.ids == ["SG301"]


def test_the_weights_that_move_most_decide_whether_the_run_had_a_chance(make):
    m = make()
    vanish(m)
    m.loss[:] = 2.3
    ratios = {t.name: 1e-7 for t in m.tensors}  # no gradient, no step: that is the fault itself
    m.sample("update_ratio", {**ratios, "5.weight": 1e-2})
    assert m.ids == ["SG301"]


def test_names_with_slashes_are_read_too(make):
    m = make()
    m.info["framework"] = "keras"
    m.tensors = [
        type(t)(f"sequential/dense_{i // 2}/{'bias' if i % 2 else 'kernel'}", t.shape, t.dtype)
        for i, t in enumerate(m.tensors)
    ]
    m.zeros[:, 5] = 0.95
    m.loss[:] = 2.3
    found = m.findings
    assert [(f.id, f.tensors) for f in found] == [("SG302", ("sequential/dense_2/bias",))]


def test_dead_is_told_from_vanishing(make):
    m = make()
    m.norms[:, :10] = 0.0
    m.zeros[:, :10] = 1.0
    m.loss[:] = 2.3
    assert m.ids == ["SG302"]


@pytest.mark.parametrize(("bias", "first"), [(0.8, "nn.Dropout"), (120.0, "act = nn.LeakyReLU")])
def test_zeros_made_behind_a_layer_are_told_from_units_that_sleep(make, bias, first):
    m = make()
    m.norms[:, :10] = 0.0
    m.zeros[:, :10] = 1.0
    m.loss[:] = 2.3
    m.sample("activation_zero", {"4.weight": 1.0})
    m.sample("activation_std", {"4.weight": 0.6})
    m.sample("weight_norm", {"4.weight": 3.0, "4.bias": bias})  # 0.2 an element, or 30
    (found,) = m.findings
    assert found.id == "SG302"
    assert found.fixes[0].startswith(first)


@pytest.mark.parametrize("stalls", [True, False])
def test_dead_units_need_a_loss_that_stalls(make, stalls):
    m = make()
    m.zeros[:, m.column("2.bias")] = 0.9
    if stalls:
        m.loss[:] = 2.3
    assert m.ids == (["SG302"] if stalls else [])


@pytest.mark.parametrize(("began", "fires"), [(0.2, True), (0.75, False)])
def test_a_narrow_layer_may_start_half_asleep(make, began, fires):
    m = make()
    m.zeros[:20, m.column("2.bias")] = began
    m.zeros[20:, m.column("2.bias")] = 0.75
    m.loss[:] = 2.3
    assert m.ids == (["SG302"] if fires else [])


@pytest.mark.parametrize(("layers", "fires"), [((1, 2, 3, 4), True), ((2,), False)])
def test_units_that_die_while_the_loss_goes_flat(make, layers, fires):
    m = make()
    m.loss = np.maximum(np.linspace(2.0, 0.5, m.steps), 1.4)
    steps, names = (0, 1, 2, 4, 8, 16), [f"{i}.weight" for i in range(5)]
    m.sample("activation_zero", dict.fromkeys(names, 0.3), steps=steps)
    late = [m.column(f"{i}.weight") for i in layers]
    m.samples["activation_zero"][1][2:, late] = 0.8
    assert m.ids == (["SG302"] if fires else [])


@pytest.mark.parametrize(("ratio", "fires"), [(1e4, True), (10.0, False)])
def test_dead_layers_that_let_nothing_through(make, ratio, fires):
    m = make()
    vanish(m, ratio)
    m.loss = np.maximum(np.linspace(2.0, 0.5, m.steps), 1.4)
    m.sample("activation_zero", dict.fromkeys([f"{i}.weight" for i in range(5)], 0.3))
    m.samples["activation_zero"][1][1:, m.column("3.weight")] = 0.8  # one of five
    assert ("SG302" in m.ids) == fires


@pytest.mark.parametrize(("moves", "severity"), [(1e-5, "info"), (0.0, "error")])
def test_a_loss_of_0_from_the_start_may_be_solved(make, moves, severity):
    m = make()
    m.norms[:] = 0.0
    m.zeros[:] = 1.0
    m.loss[:] = 0.0
    m.sample("update_ratio", {f"{i}.weight": moves for i in range(m.layers)})
    assert [(f.id, f.severity) for f in m.findings] == [("SG302", severity)]


def test_saturation_explains_exact_zeros(make):
    m = make()
    m.norms[:, :10] = 0.0
    m.zeros[:, :10] = 1.0
    m.loss[:] = 2.3
    m.sample("activation_saturated", {f"{i}.weight": 1.0 for i in range(5)})
    assert m.ids == ["SG304"]


def test_a_solved_loss_explains_zeros(make):
    m = make()
    m.norms[60:] = 0.0
    m.zeros[60:] = 1.0
    m.loss[60:] = 0.0
    assert m.ids == []


@pytest.mark.parametrize(("action", "ids"), [("none", ["SG101"]), ("skip", ["SG302", "SG101"])])
def test_zeros_after_a_nan_that_was_applied_are_its_mark(make, action, ids):
    m = make()
    m.break_from(40, 41)
    m.norms[41:, :10] = 0.0
    m.zeros[41:, :10] = 1.0
    m.loss[:] = 2.3
    m.columns["action"] = np.where(np.arange(m.steps) == 40, action, "none")
    assert m.ids == ids


def test_untouched_embedding_rows_are_not_dead(make):
    m = make()
    m.tensors[0] = type(m.tensors[0])("embed.weight", (16, 16), "float32", "Embedding", 0)
    m.zeros[:, 0] = 1.0
    m.loss[:] = 2.3
    assert m.ids == []


def test_never_a_gradient(make):
    m = make()
    m.norms[:, 2:4] = np.nan
    m.columns["norm"] = np.sqrt(np.nansum(m.norms**2, axis=1))
    assert m.ids == ["SG303"]
    assert m.findings[0].tensors == ("1.weight", "1.bias")


def test_frozen_on_purpose(make):
    m = make()
    m.norms[:, 2:4] = np.nan
    m.columns["norm"] = np.sqrt(np.nansum(m.norms**2, axis=1))
    m.info["frozen"] = [2, 3]
    assert m.ids == []


def test_saturated_activations(make):
    m = make()
    m.loss[:] = 2.3
    m.sample("activation_saturated", dict.fromkeys(("0.weight", "1.weight", "2.weight"), 0.9))
    assert m.ids == ["SG304"]
    m.sample("activation_saturated", dict.fromkeys(("0.weight", "1.weight", "2.weight"), 0.2))
    assert m.ids == []


def recurrent(m, radius, length=32, module="RNN"):
    m.tensors[4] = type(m.tensors[4])("rnn.weight_hh_l0", (16, 16), "float32", module, 2)
    m.sample("spectral_radius", {"rnn.weight_hh_l0": radius})
    m.sample("recurrent_steps", {"rnn.weight_hh_l0": length})


@pytest.mark.parametrize(
    ("radius", "length", "module", "stalls", "fires"),
    [
        (0.5, 32, "RNN", True, True),
        (0.5, 32, "RNN", False, False),
        (0.5, 16, "RNN", True, False),
        (0.95, 32, "RNN", True, False),
        (0.5, 32, "GRU", True, False),
    ],
)
def test_a_small_radius_forgets_what_a_stalled_loss_needs(
    make, radius, length, module, stalls, fires
):
    m = make()
    recurrent(m, radius, length, module)
    if stalls:
        m.loss[:] = 2.3
    assert m.ids == (["SG305"] if fires else [])


def test_networks_side_by_side_are_no_depth(make):
    m = make(layers=10)
    m.loss[:] = 2.0
    m.norms[:, :10] *= 1e-4
    m.norms *= np.repeat(np.geomspace(0.3, 3.0, 10), 2)
    assert m.ids == ["SG301"]
    names = [t.name for t in m.tensors]
    m.info["loop"] = {"chains": [names[:10], names[10:]]}
    assert m.ids == []


def test_gradients_under_the_epsilon_of_an_adam(make):
    m = make()
    m.loss[:] = 0.44
    m.norms *= 1e-12
    m.zeros[:, 3] = 0.96  # rounding, which is 0 now and then
    weights = {t.name: 1e-7 for t in m.tensors if t.name.endswith("weight")}
    m.sample("update_ratio", weights)
    m.info["optimizers"] = [{"class": "Adam", "index": 0, "eps": 1e-8}]
    (found,) = m.findings
    assert (found.id, found.severity) == ("SG301", "error")
    m.info["optimizers"][0]["class"] = "SGD"  # its rate may explain it
    assert "SG301" not in m.ids


@pytest.mark.parametrize(
    ("optimizer", "of", "late", "ids"),
    [("RMSprop", 2, 1e-12, ["SG301"]), ("RMSprop", 2, 1.0, []), ("RMSprop", 1, 1e-12, []),
     ("SGD", 2, 1e-12, [])],
)  # fmt: skip
def test_of_two_adversaries_one_may_get_nothing_from_the_start(make, optimizer, of, late, ids):
    m = make()
    m.norms[:60] *= 1e-12
    m.norms[60:] *= late
    m.loss[:] = np.linspace(1e-4, -1e-4, m.steps)  # a score: it tells nothing
    facts = {"class": optimizer, "eps": 1e-8}
    m.info["optimizers"] = [{**facts, "index": i} for i in range(of)]
    m.columns["optimizer"] = np.zeros(m.steps, np.int64)
    if of == 2:
        m.columns["optimizer"][-3:] = 1
    assert [f.id for f in m.findings if f.id == "SG301"] == ids


@pytest.mark.parametrize(("behind", "first"), [("bias", "gelu"), ("weight", "stop_gradient")])
def test_a_matrix_whose_bias_alone_gets_a_gradient_is_fed_by_dead_units(make, behind, first):
    m = make()
    m.info["framework"] = "jax"
    m.loss[:] = 2.3
    last = m.column(f"3.{behind}")  # the first tensor that gets a gradient
    m.norms[:, :last] = m.max_abs[:, :last] = 0
    m.zeros[:, :last] = 1
    found = m.findings[0]
    assert (found.id, first in found.fixes[0]) == ("SG302", True)


def test_layers_of_jax_are_taken_in_the_order_of_their_numbers(make):
    m = make(layers=12)
    m.info["framework"] = "jax"
    vanish(m)
    m.loss[:] = 2.3
    names = [f"Dense_{tensor.name.replace('.', '/')}" for tensor in m.tensors]
    sort = sorted(range(len(names)), key=names.__getitem__)  # as JAX sorts the keys of a dict
    m.tensors = [dataclasses.replace(m.tensors[i], name=names[i]) for i in sort]
    m.norms, m.max_abs, m.zeros, m.nonfinite = (
        table[:, sort] for table in (m.norms, m.max_abs, m.zeros, m.nonfinite)
    )
    assert m.findings[0].tensors == tuple(f"Dense_{i}/bias" for i in range(4))
