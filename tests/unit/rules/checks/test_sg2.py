"""SG2: growth in time, depth and time steps, spikes, and one tensor over all."""

from __future__ import annotations

import numpy as np
import pytest

from steadygrad.runlog import Event


def test_growth_that_stays(make):
    m = make()
    m.norms *= np.exp(np.arange(m.steps) / 15)[:, None]
    m.loss = np.linspace(1.0, 9.0, m.steps)
    assert m.ids == ["SG201"]


def test_growth_while_the_loss_falls_is_ordinary(make):
    m = make()
    m.norms *= np.exp(np.arange(m.steps) / 30)[:, None]
    assert m.ids == []


def test_spikes_with_their_steps(make):
    m = make()
    m.norms[50] *= 100
    m.norms[[70, 90], 3] *= 200
    found = m.findings
    assert [f.id for f in found] == ["SG202"]
    assert found[0].steps == (50, 70, 90)


def test_a_rare_gradient_among_zeros_is_no_spike(make):
    m = make()
    m.loss[:] = 0.0
    m.norms[:38] = m.norms[40:70] = m.norms[72:] = 0.0
    assert "SG202" not in m.ids


def test_clipped_spikes_are_worth_a_note_only(make):
    m = make()
    m.norms[50] *= 100
    m.clip(8.0)
    assert [(f.id, f.severity) for f in m.findings] == [("SG202", "info")]


def test_a_large_first_step_and_a_converged_tail_are_no_spikes(make):
    m = make()
    m.norms[0] *= 100
    m.norms *= np.geomspace(1, 1e-4, m.steps)[:, None]
    m.norms[110] *= 20  # a batch of an ordinary size for this run
    assert m.ids == []


@pytest.mark.parametrize(("size", "severity"), [(15, "info"), (60, "warning")])
def test_a_spike_no_larger_than_the_first_steps_is_worth_a_note_only(make, size, severity):
    m = make()
    m.norms[:3] *= 40
    m.norms[80] *= size
    assert [(f.id, f.severity) for f in m.findings] == [("SG202", severity)]


@pytest.mark.parametrize(("loss", "severity"), [(1.0, "info"), (3.0, "warning")])
def test_one_mild_spike_of_which_the_loss_shows_nothing_is_worth_a_note_only(make, loss, severity):
    m = make()
    m.norms[80] *= 14
    m.loss[80:] *= loss
    assert [(f.id, f.severity) for f in m.findings if f.id == "SG202"] == [("SG202", severity)]


@pytest.mark.parametrize(
    ("optimizer", "after", "severity"),
    [("Adam", 1.0, "info"), ("Adam", 2.0, "warning"), ("SGD", 1.0, "warning")],
)
def test_spikes_that_shake_neither_a_bounded_step_nor_the_loss_are_worth_a_note_only(
    make, optimizer, after, severity
):
    m = make()
    m.info["optimizers"] = [{"class": optimizer, "index": 0}]
    m.norms[[50, 80]] *= 100
    m.loss[[50, 80]] *= 4
    m.loss[81:] *= after
    assert [(f.id, f.severity) for f in m.findings if f.id == "SG202"] == [("SG202", severity)]


def test_a_run_without_any_gradient_has_no_dominant_tensor(make):
    m = make()
    m.norms[:] = 0.0
    m.loss[:] = 2.3
    m.columns["norm"] = np.zeros(m.steps)
    assert "SG205" not in m.ids  # and NumPy has nothing to warn of


def profile(m, factor):
    m.norms *= np.repeat(np.geomspace(factor, 1, m.layers), 2)[None]


def test_growth_through_depth(make):
    m = make()
    profile(m, 1e5)
    m.loss[:] = 3.0
    assert m.ids == ["SG203"]


def test_a_tilted_profile_that_does_no_harm_is_none(make):
    m = make()
    profile(m, 300.0)
    assert m.ids == []


def recurrent(m, radius, length=50.0):
    m.tensors[0] = type(m.tensors[0])("rnn.weight_hh_l0", (16, 16), "float32", "RNN", 0)
    m.sample("spectral_radius", {"rnn.weight_hh_l0": radius})
    m.sample("recurrent_steps", {"rnn.weight_hh_l0": length})


def test_growth_through_time_has_its_radius(make):
    m = make()
    recurrent(m, 1.2)
    m.norms[30] *= 300
    m.break_from(60)
    # weights that have exploded saturate the states: then nothing goes back through them
    flat = {"tensor": 0, "length": 50, "positions": [0, 25, 49], "norms": [0.0, 0.0, 4.6e34]}
    m.events.append(Event(58, 0.0, "through_time", flat))
    m.loss[:] = 2.3
    found = m.findings
    assert [f.id for f in found] == ["SG204"]
    assert dict(found[0].figures)["radius"] == 1.2
    assert any("1.2 to the power 50 is 9.1e+03" in s for s in found[0].evidence)


@pytest.mark.parametrize(
    ("size", "update", "told", "first"),
    [
        (4.0, 0.3, "Spectral radius: 1 at the start, 1.2 at the first sample", "for group in"),
        (4.4, 0.3, "Spectral radius: 1.1 at the start, 1.2 at the first sample", "torch.nn.init"),
        (4.0, 0.01, "Spectral radius: 1.2 at the first sample", "torch.nn.init"),
        (4.8, 0.3, "Spectral radius: 1.2 at the first sample", "torch.nn.init"),
    ],
)
def test_a_radius_that_the_first_step_has_made_asks_for_a_lower_rate(
    make, size, update, told, first
):
    """What a matrix begins at is told by its size, where the first update can have moved it."""
    m = make()
    recurrent(m, 1.2)
    m.samples["spectral_radius"] = (np.array([1, 2]), m.samples["spectral_radius"][1][:2])
    m.sample("weight_norm", {"rnn.weight_hh_l0": size})  # over the root of its 16 rows
    m.sample("update_ratio", {"rnn.weight_hh_l0": update})
    m.norms[30] *= 300
    m.break_from(60)
    found = m.findings[0]
    assert found.id == "SG204"
    assert found.evidence[0].startswith(told)
    assert found.fixes[0].startswith(first)
    assert ("and a rate" in found.fixes[0]) == (size == 4.4)


def test_a_nan_out_of_the_blue_is_not_the_radius_doing(make):
    m = make()
    recurrent(m, 1.2)
    m.break_from(60)
    assert m.ids == ["SG101"]


def test_a_radius_without_an_explosion_is_no_fault(make):
    m = make()
    recurrent(m, 1.2)
    assert m.ids == []


def test_an_explosion_with_a_small_radius_is_another(make):
    m = make()
    recurrent(m, 0.9)
    m.norms[30] *= 300
    assert m.ids == ["SG202"]


def test_one_tensor_over_all(make):
    m = make()
    m.norms[:, 4] *= 1000
    assert m.ids == []  # no clip follows it, and the loss falls
    m.clip(100.0)
    assert [(f.id, f.tensors) for f in m.findings] == [("SG205", ("2.weight",))]
    assert m.findings[0].severity == "warning"
    m.info["optimizers"] = [{"class": "AdamW", "index": 0}]  # divides the factor out again
    assert ("SG205", "info") in [(f.id, f.severity) for f in m.findings]


@pytest.mark.parametrize(("tensor", "fires"), [("5.weight", True), ("5.bias", False)])
def test_a_bias_may_carry_the_norm_where_data_has_no_more_to_teach(make, tensor, fires):
    m = make()
    m.loss[:] = 2.3
    m.norms[:, m.column(tensor)] *= 1000
    assert ("SG205" in m.ids) == fires


def test_a_loss_that_comes_home_to_0_from_below_has_not_diverged(make):
    m = make()
    way = np.concatenate([np.linspace(-0.06, -0.1, 40), np.linspace(-0.1, 0.0, m.steps - 40)])
    m.loss = way
    m.norms[:, m.column("2.weight")] *= 1000
    assert m.ids == []
    m.loss = np.where(way > -0.05, 1.0, way)
    assert m.ids == ["SG205"]


@pytest.mark.parametrize(("ahead", "fires"), [(1000.0, True), (50.0, False)])
def test_one_tensor_moves_and_the_others_stand_still(make, ahead, fires):
    m = make()
    m.loss[:] = 2.3
    m.sample("update_ratio", {**{t.name: 1e-4 for t in m.tensors}, "2.weight": 1e-4 * ahead})
    assert [(f.id, f.tensors) for f in m.findings] == ([("SG205", ("2.weight",))] if fires else [])


def test_norms_that_leave_a_tiny_start_are_worth_knowing_and_no_more(make):
    m = make()
    m.norms *= np.geomspace(1e-3, 1, m.steps)[:, None]
    m.loss = np.linspace(0.7, 0.9, m.steps)  # an adversary learns
    assert [(f.id, f.severity) for f in m.findings] == [("SG201", "info")]


@pytest.mark.parametrize(("peak", "fires"), [(60.0, True), (0.06, False)])
def test_growth_in_the_first_steps_that_stays(make, peak, fires):
    m = make()
    m.norms[3:] *= 40
    m.loss = 0.05 + peak * np.sin(np.arange(m.steps) / 40) ** 2  # an adversary's: up and down
    assert m.ids == (["SG201"] if fires else [])


def test_a_large_tensor_is_not_a_steep_one(make):
    m = make()
    m.tensors[4] = type(m.tensors[4])("2.weight", (1600, 1600), "float32", "Linear", 2)
    m.norms[:, 4] *= 100
    assert m.ids == []


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e10])
def test_a_threshold_is_proposed_only_where_the_norms_are_ordinary(make, size):
    m = make()
    m.norms[[40, 70]] *= 300
    m.norms *= size
    (found,) = (f for f in m.findings if f.id == "SG202")
    text = "\n".join(found.fixes)
    assert ('clip="norm:' in text) == (size == 1.0)
    assert ("no threshold yet" in text) == (size != 1.0)
    assert "sg.attach" in found.fixes[0]  # something to do comes first


def test_a_score_without_a_floor_is_to_be_bounded_before_its_rate_is_lowered(make):
    m = make()
    m.norms *= np.geomspace(1, 30, m.steps)[:, None]
    m.loss = -np.geomspace(1, 1e4, m.steps)
    names = [t.name for t in m.tensors]
    m.samples["weight_norm"] = ([0, 100], [[1.0] * len(names), [9.0] * len(names)])
    (found,) = (f for f in m.findings if f.id == "SG201")
    assert "unbounded critic" in found.causes[0]
    assert "spectral_norm" in found.fixes[0]


@pytest.mark.parametrize("at_first", [1.0, 1e5])
def test_an_lstm_whose_gradient_was_measured_to_explode_through_time(make, at_first):
    m = make()
    m.tensors[0] = type(m.tensors[0])("lstm.weight_hh_l0", (16, 16), "float32", "LSTM", 0)
    m.norms[60] *= 300
    for step, growth in ((0, at_first), (32, 1e5)):
        norms = np.geomspace(growth, 1, 40).tolist()
        data = {"tensor": 0, "length": 40, "positions": list(range(40)), "norms": norms}
        m.events.append(Event(step, 0.0, "through_time", data))
    first = m.findings[0]
    assert (first.id, first.tensors) == ("SG204", ("lstm.weight_hh_l0",))
    assert first.confidence == (0.9 if at_first > 1 else 0.8)
    assert "it doubles every 2.35 time steps" in first.evidence[0]
    back = {"act": "rollback", "to_step": 30, "optimizer": 0}  # the sample of step 32 is undone
    m.events.append(Event(40, 0.0, "recovery", back))
    assert ("SG204" in m.ids) == (at_first > 1)
    m.events.clear()
    assert "SG204" not in m.ids


def unusual(m, factor, step=60, loss_from=62, rise=3.0):
    """Updates of 0.01 of the weights but for one, and a loss that rises in a while."""
    names = [t.name for t in m.tensors if "weight" in t.name]
    m.sample("update_ratio", dict.fromkeys(names, 0.01), steps=(0, 1, 2, 4, 8, 16, 32, 64))
    m.sample("unusual_update", dict.fromkeys(names, 0.01 * factor), steps=(step,))
    m.loss[loss_from:] += rise


def test_an_update_that_spikes_before_the_loss(make):
    m = make()
    unusual(m, 12.0)
    (found,) = m.findings
    assert (found.id, found.severity, found.steps) == ("SG207", "warning", (60,))
    assert "it rises 2 steps later" in found.evidence[1]
    m.loss[75:] -= 3.0  # it comes back
    assert [(f.id, f.severity) for f in m.findings] == [("SG207", "info")]


@pytest.mark.parametrize("kind", ["small", "no rise", "the loss first", "the rate", "the start"])
def test_an_update_that_explains_no_loss_is_not_blamed(make, kind):
    m = make()
    unusual(
        m,
        2.0 if kind == "small" else 12.0,
        step=2 if kind == "the start" else 60,
        loss_from={"the loss first": 58, "the start": 4}.get(kind, 62),
        rise=0.0 if kind == "no rise" else 3.0,
    )
    if kind == "the rate":  # a restart
        m.columns["lr"] = np.where(np.arange(m.steps) == 60, 0.12, 0.01)
    assert "SG207" not in m.ids


def test_norms_that_a_spike_left_higher_are_its_mark_and_no_growth(make):
    m = make()
    m.norms[40:] *= 40
    m.norms[40] *= 200
    m.norms *= np.geomspace(1, 2, m.steps)[:, None]
    m.loss[40:] = 60.0
    assert m.ids[0] == "SG202"
    assert "SG201" not in m.ids


@pytest.mark.parametrize(("climbs", "fires"), [(True, True), (False, False)])
def test_a_score_without_a_floor_is_told_by_its_norms_where_no_weights_are_seen(
    make, climbs, fires
):
    m = make()
    m.loss = -np.geomspace(1.0, 1000.0, m.steps)
    growth = np.geomspace(1, 50, m.steps)
    m.norms *= (growth if climbs else growth[np.argsort(np.arange(m.steps) % 30)])[:, None]
    assert ("SG201" in m.ids) == fires
    if fires:
        assert "the sign" in m.findings[0].fixes[0]


@pytest.mark.parametrize(
    ("gaps", "lasts", "severity"),
    [
        ((100, 100), 6, "info"),
        ((100, 200), 6, "info"),
        ((100, 137), 6, "warning"),
        ((100, 100), 1, "warning"),
    ],
)
def test_spikes_where_targets_change_are_no_outliers(make, gaps, lasts, severity):
    m = make(steps=600)
    for begin in 200 + np.cumsum((0, *gaps)):
        fading = 30.0 ** np.linspace(1, 0.5, lasts)[:, None]
        m.norms[begin : begin + lasts] *= fading
        m.loss[begin : begin + lasts] += 1.0
    (found,) = m.findings
    assert (found.id, found.severity) == ("SG202", severity)
    assert ("every 100 steps" in found.title) == (severity == "info")


@pytest.mark.parametrize(
    ("gap", "lasts", "costs", "stays", "fires"),
    [
        (100, 6, 6, 0.0, True),
        (100, 1, 6, 0.0, False),  # the norm is down again at once
        (100, 6, 0, 0.0, False),  # the loss does not see it
        (100, 6, 6, 1.0, False),  # what was lost is not learned again
        (20, 6, 6, 0.0, False),  # too near to each other to tell
    ],
)
def test_what_tells_targets_that_change(make, gap, lasts, costs, stays, fires):
    m = make(steps=600)
    for begin in range(200, 200 + 3 * gap, gap):
        m.norms[begin : begin + lasts] *= 20.0
        m.loss[begin : begin + costs] += 1.0
        m.loss[begin:] += stays
    assert any(f"every {gap} steps" in found.title for found in m.findings) == fires
