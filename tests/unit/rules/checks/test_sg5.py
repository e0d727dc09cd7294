"""SG5: initialisation, learning rate, loss scale, norms that are not what they seem, inputs."""

from __future__ import annotations

import numpy as np
import pytest


def deviations(m, value):
    m.sample("weight_std", {t.name: value for t in m.tensors if "weight" in t.name})


@pytest.mark.parametrize(
    ("gain", "fires"), [(8.0, True), (1.4, False), (0.58, False), (0.02, True)]
)
def test_initial_weights(make, gain, fires):
    m = make()
    m.loss[:] = 2.3
    deviations(m, gain / 4)  # a fan-in of 16
    assert m.ids == (["SG501"] if fires else [])


def test_constant_weights(make):
    m = make()
    deviations(m, 0.0)
    assert m.ids == ["SG501"]


def test_small_weights_behind_normalisation(make):
    m = make()
    m.loss[:] = 2.3
    deviations(m, 0.02 / 4)
    m.tensors[1] = type(m.tensors[1])("0.norm", (16,), "float32", "LayerNorm", 0)
    assert m.ids == []


def ratios(m, value):
    m.sample("update_ratio", {t.name: value for t in m.tensors}, steps=(0, 1, 2, 4, 8, 64))


def test_a_first_step_that_throws_the_weights_away(make):
    m = make()
    m.loss = np.linspace(0.70, 0.66, m.steps)
    m.norms[0] *= 1e7
    moved = np.array([2e4, 1e-5, 1e-5, 1e-5, 1e-5, 1e-5])[:, None] * np.ones(len(m.tensors))
    m.samples["update_ratio"] = (np.array([0, 1, 2, 4, 8, 64]), moved)
    (found,) = [f for f in m.findings if f.id == "SG502"]
    assert found.title.startswith("The first step threw the weights away")
    assert "it moved them by 20,000 times their size" in found.title
    assert "orthogonal_" in found.fixes[0]
    m.loss = np.linspace(0.70, 0.10, m.steps)  # it was got over
    assert "SG502" not in m.ids


@pytest.mark.parametrize(("end", "ids"), [(0.7, ["SG502"]), (0.01, [])])
def test_first_steps_that_overshoot_and_do_no_harm(make, end, ids):
    m = make()
    m.loss = np.concatenate([[1.0, 2.0, 1.5, 1.2], np.geomspace(1.0, end, m.steps - 4)])
    moved = np.array([0.8, 3.0, 1.1, 0.2, 0.1, 0.01])[:, None] * np.ones(len(m.tensors))
    m.samples["update_ratio"] = (np.array([0, 1, 2, 4, 8, 64]), moved)
    assert m.ids == ids


def test_a_search_goes_as_far_as_it_likes(make):
    m = make()
    m.info["optimizers"] = [{"class": "LBFGS", "index": 0}]
    m.loss = np.append(2.0, np.full(m.steps - 1, 1e-9))  # found by the first one
    ratios(m, 100.0)
    deviations(m, 0.02 / 4)
    assert m.ids == []
    m.loss = np.linspace(1.0, 30.0, m.steps)
    (found,) = [f for f in m.findings if f.id == "SG502"]
    assert "strong_wolfe" in found.fixes[0]
    m.info["optimizers"][0]["class"] = "SGD"
    m.loss = np.append(2.0, np.full(m.steps - 1, 1e-9))
    assert m.ids == ["SG501", "SG502"]


def test_learning_rate(make):
    m = make()
    ratios(m, 0.8)
    assert m.ids == []  # large steps that do well
    m.loss = np.linspace(1.0, 30.0, m.steps)
    assert m.ids == ["SG502"]
    ratios(m, 0.01)
    assert "SG502" not in m.ids


def scaled(m, scale):
    m.columns["loss_scale"] = scale
    m.info["amp"] = True


def test_collapsed_loss_scale(make):
    m = make()
    m.break_from(60)
    m.columns["action"] = np.where(np.arange(m.steps) >= 60, "skip", "none")
    scaled(m, 2.0 ** np.r_[np.full(60, 16), np.linspace(16, -30, 60)])
    assert m.ids == ["SG503"]


def test_stuck_loss_scale(make):
    m = make()
    hit = np.arange(m.steps) > 20
    m.norms[hit] = np.inf
    m.nonfinite[hit] = 1
    m.columns["action"] = np.where(hit, "skip", "none")
    scaled(m, np.full(m.steps, 2.0**30))
    assert m.ids == ["SG503"]


@pytest.mark.parametrize(("factor", "said"), [(64.0, "2 to the power 6"), (0.5, "one of 4 shards")])
def test_a_norm_that_is_scaled_or_sharded(make, factor, said):
    m = make()
    for step in range(m.steps):
        m.call(step, norm=factor * m.total[step])
    found = m.findings
    assert [f.id for f in found] == ["SG504"]
    assert any(said in sentence for sentence in found[0].evidence)


def test_inputs_out_of_range(make):
    m = make()
    deviations(m, 0.25)
    m.sample("activation_std", {"0.weight": 200.0})
    assert [(f.id, f.severity) for f in m.findings] == [("SG505", "info")]  # the loss falls
    m.loss[:] = 2.3
    assert [(f.id, f.severity) for f in m.findings] == [("SG505", "warning")]


def test_inputs_out_of_range_behind_normalisation(make):
    m = make()
    deviations(m, 0.25)
    m.sample("activation_std", {"0.weight": 200.0})
    m.tensors[1] = type(m.tensors[1])("0.norm", (16,), "float32", "LayerNorm", 0)
    assert m.ids == []


def test_large_inputs_cost_the_first_steps(make):
    m = make()
    deviations(m, 0.25)
    m.sample("activation_std", {"0.weight": 200.0})
    m.loss[:3] *= 1e4
    assert [(f.id, f.severity) for f in m.findings] == [("SG505", "warning")]


@pytest.mark.parametrize(("gain", "severity"), [(4.0, "info"), (20.0, "error")])
def test_large_weights_that_training_got_over(make, gain, severity):
    m = make()
    deviations(m, gain / 4)
    assert [(f.id, f.severity) for f in m.findings] == [("SG501", severity)]


def test_a_loss_that_is_never_again_as_low_as_before_training(make):
    m = make()
    ratios(m, 0.2)
    m.loss = np.linspace(3.0, 2.4, m.steps)
    assert m.ids == []
    m.loss[0] = 1.5
    assert m.ids == ["SG502"]


def sizes(m, targets, outputs=0.3):
    m.info["loop"] = {"sizes": {"loss": "mse_loss", "targets": targets, "outputs": outputs}}


@pytest.mark.parametrize(("end", "severity"), [(0.9, "error"), (0.3, "warning"), (0.01, None)])
def test_targets_that_are_not_scaled(make, end, severity):
    m = make()
    m.loss = 1e6 * np.linspace(1.0, end, m.steps)
    sizes(m, 1e3)
    assert [(f.id, f.severity) for f in m.findings] == ([("SG507", severity)] if severity else [])
    m.info["loop"]["sizes"]["spread"] = 1e2  # the mean is learned, and nothing else
    assert [(f.id, f.severity) for f in m.findings] == [("SG507", "error")]
    sizes(m, 20.0)
    assert m.ids == []
    sizes(m, 1e3, 1e3)  # a model whose outputs are as large
    assert m.ids == []


def test_targets_guessed_from_the_loss_where_no_graph_is_seen(make):
    m = make()
    m.loss = np.linspace(1e12, 0.9e12, m.steps)
    last = f"{m.layers - 1}.weight"
    m.sample("activation_std", {last: 0.3})
    (found,) = m.findings
    assert (found.id, found.severity, found.tensors) == ("SG507", "error", (last,))
    m.sample("activation_std", {last: 1e6})
    assert m.ids == []
    m.info["loop"] = {"summed": 10**12}  # a mean of 1
    m.sample("activation_std", {last: 0.3})
    assert "SG507" not in m.ids


@pytest.mark.parametrize(("end", "severity"), [(0.9, "warning"), (0.01, "info")])
def test_a_first_norm_that_nothing_scaled_gives(make, end, severity):
    m = make()
    m.norms *= 1e16
    m.loss = 1e9 * np.linspace(1.0, end, m.steps)
    assert [(f.id, f.severity) for f in m.findings] == [("SG507", severity)]
    m.norms /= 1e14
    assert m.ids == []


def test_outputs_a_thousand_times_unit_size(make):
    m = make()
    deviations(m, 0.25)
    last = f"{m.layers - 1}.weight"
    m.sample("activation_std", {"0.weight": 1.0, last: 5e3})
    (found,) = m.findings
    assert (found.id, found.severity, found.tensors) == ("SG507", "warning", (last,))
    m.sample("activation_std", {"0.weight": 1.0, last: 5.0})
    assert m.ids == []
    m.sample("activation_std", {"0.weight": 200.0, last: 5e3})  # SG505 tells it
    assert "SG507" not in m.ids


@pytest.mark.parametrize(
    ("rises", "below", "fires"), [(True, 0, True), (False, 0, False), (True, 2, False)]
)
def test_a_negative_rate_goes_uphill(make, rises, below, fires):
    m = make()
    m.info["framework"] = "jax"
    m.columns["lr"] = np.full(m.steps, -0.001)
    m.loss = np.geomspace(1.0, 1000.0, m.steps)[:: 1 if rises else -1] - below  # as a score is
    m.norms *= np.geomspace(1, 50, m.steps)[:, None]
    assert ("SG502" in m.ids) == fires
    if fires:
        assert m.findings[0].fixes[0].startswith("optax.scale(-0.001)")


@pytest.mark.parametrize(("moves", "fires"), [(True, True), (False, False)])
def test_gradients_that_are_handed_on_as_updates(make, moves, fires):
    m = make()
    m.info.update(framework="jax", loop={"optimizers": [{"index": 0, "raw": ["0.weight"]}]})
    m.norms[:, 0] *= moves
    assert ("SG502" in m.ids) == fires
    if fires:
        assert "set_to_zero" in m.findings[0].fixes[0]
