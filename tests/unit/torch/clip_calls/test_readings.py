"""What is known of gradients before and after a script's clip calls, in columns."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from steadygrad.torch.clip_calls.clips import ClipLog
from steadygrad.torch.clip_calls.clocks import Clocks
from steadygrad.torch.clip_calls.readings import EVERY, joined, read
from steadygrad.torch.record.losses import LossMeter


def weights(*gradients):
    made = [torch.zeros(len(g), requires_grad=True) for g in gradients]
    for weight, gradient in zip(made, gradients, strict=True):
        weight.grad = torch.tensor(gradient)
    return made


def clipped(log, params, max_norm):
    call = log.before(params, max_norm, 2.0, "norm")
    log.after(call, torch.nn.utils.clip_grad_norm_(params, max_norm))
    return call


@pytest.fixture
def log():
    losses = LossMeter()
    losses.backwards = 1
    return ClipLog(losses)


def test_a_second_read_is_spared_until_a_gradient_is_touched(log):
    params = weights([3.0, 4.0], [12.0])
    clipped(log, params, 6.5)
    reading = log.reading_of(params)
    assert reading.norms.tolist() == [5.0, 12.0]
    assert reading.left == pytest.approx(np.array([2.5, 6.0]), rel=1e-6)
    assert reading.total == pytest.approx(13.0)
    with torch.no_grad():
        params[1].grad.mul_(3)
    mixed = log.reading_of(params)
    assert mixed.norms == pytest.approx(np.array([5.0, 18.0]), rel=1e-6)
    assert mixed.left == pytest.approx(np.array([2.5, 18.0]), rel=1e-6)
    assert mixed.uneven


def test_a_new_gradient_at_the_address_of_the_old_one_is_read_anew(log):
    for _ in range(1000):  # what else is made in between may take the place
        params = weights([3.0, 4.0])
        log.before(params, 1.0, 2.0, "norm")  # a call that raised, and wrote nothing
        address, params[0].grad = id(params[0].grad), None
        params[0].grad = torch.tensor([6.0, 8.0])
        if id(params[0].grad) == address:
            break
    assert id(params[0].grad) == address
    assert log.reading_of(params) is None  # so that the step reads it


def test_calls_on_parts_of_a_model_are_joined_in_the_order_of_the_step(log):
    params = weights([3.0, 4.0], [12.0], [0.5])
    clipped(log, params[1:2], 6.0)
    clipped(log, params[:1], 1.0)
    reading = log.reading_of(params)
    assert reading.norms.tolist() == [5.0, 12.0, 0.5]
    assert reading.left == pytest.approx(np.array([1.0, 6.0, 0.5]), rel=1e-6)
    assert reading.dots == pytest.approx(np.array([5.0, 72.0, 0.25]), rel=1e-6)
    assert reading.threshold in (1.0, 6.0)


def test_a_call_on_a_part_of_what_was_read_changes_that_part_alone(log):
    params = weights([3.0, 4.0], [12.0])
    whole = read(params, 2.0)
    log.remember(whole)
    clipped(log, params[1:], 6.0)
    assert whole.norms.tolist() == [5.0, 12.0]
    assert whole.left == pytest.approx(np.array([5.0, 6.0]), rel=1e-6)
    assert log.reading_of(params) is whole


def test_figures_follow_a_loss_scale_that_is_divided_out(log):
    log.losses.scale = torch.tensor(8.0)
    generator, critic = weights([24.0, 32.0], [96.0])
    clipped(log, [generator, critic], 52.0)

    unscaling = log.before_unscale([generator])
    with torch.no_grad():
        generator.grad.div_(8)
    log.after_unscale(unscaling)
    reading = log.reading_of([generator])
    assert reading.norms.tolist() == [5.0]
    assert reading.left == pytest.approx(np.array([2.5]), rel=1e-6)
    assert reading.dots == pytest.approx(np.array([12.5]), rel=1e-6)
    assert reading.threshold == 6.5
    other = log.reading_of([critic])
    assert other.norms.tolist() == [96.0]
    assert other.threshold == 52.0


def test_a_loss_scale_is_divided_out_until_the_step_and_of_no_later_optimizer(log):
    log.losses.scale = 8.0
    generator, critic = weights([24.0, 32.0], [96.0])
    for is_over in (log.stepped, log.begin):  # the step, or another optimizer with the same ids
        log.after_unscale(log.before_unscale([generator]))
        scales = [log.before([p], 1.0, 2.0, "norm").scale for p in (generator, critic)]
        assert scales == [None, 8.0]
        is_over([generator])
        assert log.before([generator], 1.0, 2.0, "norm").scale == 8.0


def test_a_clamp_counts_from_what_stood_before_it():
    params = weights([3.0, -4.0], [0.0], [1.0])
    reading = read(params, 2.0)
    reading.scale(0.5, EVERY)  # 1.5, -2
    reading.clamp([0], np.array([math.hypot(1.5, 1.0)]), np.array([1.5 * 1.5 + 2.0 * 1.0]))
    assert reading.left == pytest.approx(np.array([math.hypot(1.5, 1.0), 0.0, 0.5]))
    # with the gradient before both: 3 * 1.5 + 4 * 1
    assert reading.dots == pytest.approx(np.array([8.5, 0.0, 0.5]))


def test_nothing_outlives_the_step(log):
    params = weights([3.0, 4.0], [12.0])
    clipped(log, params, 6.5)
    assert len(log.stepped(params[:1])) == 1
    assert log.reading_of(params[:1]) is None
    assert log.reading_of(params[1:]).norms.tolist() == [12.0]
    log.stepped(params[1:])
    assert log.reading_of(params[1:]) is None


def test_rows_of_several_readings_keep_their_marks():
    params = weights([3.0, 4.0], [12.0])
    both = joined([(read(params[1:], 2.0), 0), (read(params[:1], 2.0), 0)])
    assert both.norms.tolist() == [12.0, 5.0]
    assert both.holds([params[1], params[0]])
    params[0].grad.zero_()
    assert not both.holds([params[1], params[0]])


def test_parameters_share_a_clock_until_a_call_parts_them():
    clocks = Clocks()
    (shared,) = clocks.of([1, 2, 3])
    shared.clip = 5
    first, second = clocks.of([2]), clocks.of([1, 3])
    assert len(first) == len(second) == 1
    assert first[0] is not second[0]
    assert first[0].clip == second[0].clip == 5
    first[0].clip = 6
    assert [clock.clip for clock in clocks.of([1, 2, 3])] == [5, 6]
    assert clocks.of([2]) is first  # and stays parted: no new clock at every call
    assert clocks.of([1, 3]) is second


def test_a_call_knows_nothing_of_one_on_a_weight_that_is_gone(log):
    gone, weight = weights([3.0, 4.0], [6.0, 8.0])
    clipped(log, [gone], 1.0)
    log.clocks.sharing[id(weight),] = log.clocks.of([id(gone)])  # as where its id is used again
    log.waiting[0].ids = frozenset([id(weight)])
    del gone
    log.losses.backwards += 1
    call = clipped(log, [weight], 1.0)
    assert (call.repeated, call.renewals) == (0, 0)
    assert len(log.waiting) == 1
    assert clipped(log, [weight], 1.0).repeated == 1
