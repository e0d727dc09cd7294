"""Checkpoints of a policy's state, and its growth with the optimizer."""

from __future__ import annotations

import io

import pytest
import torch
import torch.distributed.checkpoint as checkpoints
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

import steadygrad.torch as sg
from steadygrad.errors import SteadyGradWarning, UsageError


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def resumed(training, clip, steps, cut):
    """Figures and final memory of a training that is saved and loaded after ``cut`` steps."""
    t = training(sgd)
    steady = sg.attach(t.optimizer, clip=clip, model=t.model)
    seen = []
    for step in range(steps):
        if step == cut:
            file = io.BytesIO()
            torch.save([t.model.state_dict(), t.optimizer.state_dict(), steady.state_dict()], file)
            file.seek(0)
            model, optimizer, state = torch.load(file, weights_only=True)
            t = training(sgd)
            t.model.load_state_dict(model)
            t.optimizer.load_state_dict(optimizer)
            steady = sg.attach(t.optimizer, clip=clip, model=t.model)
            steady.load_state_dict(state)
        t.step(1.0 + step % 3)
        seen.append((steady.last.step, steady.last.norm, steady.last.threshold, steady.last.coef))
    return seen, {key: value.tolist() for key, value in steady.state_dict()["state"].items()}


@pytest.mark.parametrize("clip", ["norm:0.1", "autoclip:50", "zclip:warmup=4", "adagc:warmup=3"])
@pytest.mark.parametrize("cut", [1, 6])
def test_a_resumed_training_goes_on_as_if_nothing_had_been(training, clip, cut):
    whole = resumed(training, clip, 10, None)
    assert resumed(training, clip, 10, cut) == whole
    early = resumed(training, clip, 1, None)
    assert (whole[1] != early[1]) == (clip != "norm:0.1")  # it does remember something


def test_groups_are_saved_and_loaded_too(training):
    clip = {"0.*": "zclip:warmup=3", "*": "adagc:warmup=2"}
    assert resumed(training, clip, 8, 5) == resumed(training, clip, 8, None)


def test_another_policy_is_refused(training):
    one, two = training(sgd), training(sgd)
    saved = sg.attach(one.optimizer, clip="norm:1.0").state_dict()
    other = sg.attach(two.optimizer, clip="norm:2.0")
    message = r"of the policy 'norm:1.0', but .* with 'norm:2.0': type attach.*clip='norm:1.0'"
    with pytest.raises(UsageError, match=message):
        other.load_state_dict(saved)
    with pytest.raises(UsageError, match="not a steadygrad state: it lacks names, policy"):
        other.load_state_dict({"state": {}, "steps": 1})


def test_the_state_of_other_tensors_is_refused_where_it_is_per_tensor(training):
    one, two = training(sgd), training(sgd)
    first = sg.attach(one.optimizer, clip="adagc", model=one.model)
    one.step()
    second = sg.attach(two.optimizer, clip="adagc", names=lambda p: f"t{tuple(p.shape)}")
    with pytest.raises(UsageError, match=r"of other tensors: missing here \['0.bias'"):
        second.load_state_dict(first.state_dict())
    saved = first.state_dict()
    saved["state"] = {"gamma": torch.zeros(3), "count": torch.tensor(1)}
    three = training(sgd)
    third = sg.attach(three.optimizer, clip="adagc")
    saved["names"] = third.state_dict()["names"]
    with pytest.raises(UsageError, match="it was saved over other tensors"):
        third.load_state_dict(saved)


def test_a_state_can_be_loaded_before_the_first_step_and_keeps_its_forward_order(training):
    t = training(sgd)
    steady = sg.attach(t.optimizer, clip="adagc", model=t.model)
    steady.load_state_dict(steady.state_dict())
    t.step()
    assert [info.position for info in steady._engine.journal.announced] == [0, 0, 1, 1]


def test_a_state_is_a_copy(training):
    t = training(sgd)
    steady = sg.attach(t.optimizer, clip="zclip:warmup=2")
    t.step()
    saved = steady.state_dict()["state"]
    before = {key: value.clone() for key, value in saved.items()}
    t.step()
    assert all(torch.equal(saved[key], before[key]) for key in saved)


def test_memory_per_tensor_grows_with_added_parameters(training):
    def first_layer(model):
        return torch.optim.SGD(model[0].parameters(), lr=0.1)

    t = training(first_layer)
    steady = sg.attach(t.optimizer, clip="adagc:warmup=1", model=t.model)
    t.step()
    t.step()
    before = steady.state_dict()["state"]["gamma"]
    t.optimizer.add_param_group({"params": t.model[2].parameters()})
    assert steady.state_dict()["state"]["gamma"].tolist() == [*before.tolist(), 0.0, 0.0]
    t.step()
    assert (steady.state_dict()["state"]["gamma"] > 0).all()


def test_a_tensor_without_a_gradient_keeps_its_memory(training):
    t = training(sgd)
    steady = sg.attach(t.optimizer, clip="adagc:warmup=1", model=t.model)
    t.step()
    t.step()
    before = steady.state_dict()["state"]["gamma"]
    t.backward()
    t.model[0].bias.grad = None
    kept = [p.grad.clone() for p in t.model.parameters() if p.grad is not None]
    t.optimizer.step()
    after = steady.state_dict()["state"]["gamma"]
    assert steady.stats.names == ("0.weight", "2.weight", "2.bias")
    assert after[1] == before[1]
    assert (after[[0, 2, 3]] != before[[0, 2, 3]]).all()
    assert len(kept) == len(steady.stats.norms)


def test_rearranged_parameters_start_anew_with_a_warning(training):
    t = training(sgd)
    sg.attach(t.optimizer, clip="adagc:warmup=1", model=t.model)
    t.step()
    t.optimizer.param_groups[0]["params"].reverse()
    t.backward()
    with pytest.warns(
        SteadyGradWarning, match=r"rearranged, so what the policy adagc.*starts anew"
    ):
        t.optimizer.step()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_a_distributed_checkpoint_is_read_in_place_before_the_first_step(training, tmp_path):
    t = training(sgd)
    with sg.attach(t.optimizer, clip="zclip", model=t.model) as saved:
        for step in range(3):
            t.step(1.0 + step)
        checkpoints.save({"steady": saved}, checkpoint_id=tmp_path, no_dist=True)
        state = saved.state_dict()
    t = training(sgd)
    with sg.attach(t.optimizer, clip="zclip", model=t.model) as steady:
        checkpoints.load({"steady": steady}, checkpoint_id=tmp_path, no_dist=True)
        assert steady.state_dict() == state
        assert steady.state_dict()["state"]["count"] == 3


def test_a_step_that_only_makes_an_optimizers_state_is_none(training):
    t = training(sgd)
    with sg.attach(t.optimizer, clip="zclip", model=t.model) as steady:
        get_optimizer_state_dict(t.model, t.optimizer)
        assert t.optimizer.state  # torch has stepped with gradients of zeros
        assert (steady.steps, steady.state_dict()["state"]["count"]) == (0, 0)
        t.step(1.0)
        assert (steady.steps, steady.state_dict()["state"]["count"]) == (1, 1)
