"""attach: where it acts, what it returns, and that it can be taken off again."""

from __future__ import annotations

import copy
import gc
import io
import math
import pickle
import weakref

import pytest
import torch
from torch.nn.modules.module import _global_forward_pre_hooks

import steadygrad.torch as sg
from steadygrad.errors import (
    AttachError,
    NoGradientsWarning,
    SpecError,
    SteadyGradWarning,
    UsageError,
)
from steadygrad.policies import ClipNorm
from steadygrad.torch.internals import scaler


def test_an_optimizer_without_a_step_is_refused(sgd):
    class Fused(torch.optim.Optimizer):
        def step(self, closure=None):
            raise NotImplementedError

    with pytest.raises(AttachError, match=r"this Fused has no step\(\)"):
        sg.attach(Fused(sgd.model.parameters(), {}))


def test_clips_inside_step_by_the_exact_coefficient(sgd):
    steady = sg.attach(sgd.optimizer, clip="norm:0.25")
    sgd.backward()
    norm, grads = sgd.norm(), [g.clone() for g in sgd.grads()]
    sgd.optimizer.step()
    assert norm > 0.25
    assert steady.last.norm == pytest.approx(norm, rel=1e-12)
    assert steady.last.coef == 0.25 / steady.last.norm
    assert (steady.last.threshold, steady.last.action) == (0.25, "clip")
    for after, before in zip(sgd.grads(), grads, strict=True):
        assert torch.equal(after, (before.double() * steady.last.coef).float())


def test_nothing_is_written_below_the_threshold(sgd):
    steady = sg.attach(sgd.optimizer, clip="norm:1000")
    sgd.backward()
    versions = [g._version for g in sgd.grads()]
    sgd.optimizer.step()
    assert [g._version for g in sgd.grads()] == versions
    assert (steady.last.coef, steady.last.action, steady.last.cosine) == (1.0, "none", 1.0)


MAKERS = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, foreach=False),
    "adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.1, foreach=True),
    "adamw-fused": lambda m: torch.optim.AdamW(m.parameters(), lr=0.1, fused=True),
    "adam-capturable-free": lambda m: torch.optim.Adam(m.parameters(), lr=torch.tensor(0.1)),
    "rmsprop": lambda m: torch.optim.RMSprop(m.parameters(), lr=0.01),
    "lbfgs": lambda m: torch.optim.LBFGS(m.parameters(), max_iter=4, line_search_fn="strong_wolfe"),
}


@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("with_closure", [False, True])
def test_observing_changes_no_bit(training, maker, with_closure, tmp_path):
    observed, plain = training(maker), training(maker)
    sg.attach(observed.optimizer, clip="none", model=observed.model, run=tmp_path / "run.db")
    for t in (observed, plain):
        state = torch.get_rng_state()
        for _ in range(4):
            if with_closure or isinstance(t.optimizer, torch.optim.LBFGS):
                t.optimizer.step(t.closure())
            else:
                t.step()
        assert torch.equal(torch.get_rng_state(), state)
    assert observed.same_as(plain)


def test_clipping_is_what_clipping_by_hand_gives(training):
    ours, by_hand = training(MAKERS["adam"]), training(MAKERS["adam"])
    sg.attach(ours.optimizer, clip="norm:0.1")
    for _ in range(3):
        ours.step()
        by_hand.backward()
        sg.clip_grad_norm_(by_hand.model.parameters(), 0.1)
        by_hand.optimizer.step()
    assert ours.same_as(by_hand)


def test_it_can_be_attached_after_a_scheduler_and_before_one(training):
    for early in (True, False):
        t = training(MAKERS["sgd"])
        if early:
            schedule = torch.optim.lr_scheduler.StepLR(t.optimizer, 1, gamma=0.5)
            steady = sg.attach(t.optimizer, clip="norm:0.1")
        else:
            steady = sg.attach(t.optimizer, clip="norm:0.1")
            schedule = torch.optim.lr_scheduler.StepLR(t.optimizer, 1, gamma=0.5)
        rates = []
        for _ in range(2):
            t.step()
            schedule.step()
            rates.append(steady.last.lr)
        t.step(math.nan)  # a skipped step goes through the scheduler's wrapper as well
        assert rates == [0.1, 0.05]
        assert [steady.steps, steady.last.action] == [3, "skip"]


def test_parameter_groups_and_later_parameters(training):
    t = training(
        lambda m: torch.optim.SGD([{"params": [m[0].weight]}, {"params": [m[0].bias]}], 0.1)
    )
    steady = sg.attach(t.optimizer, clip="norm:0.1")
    t.step()
    assert steady.stats.names == ("group0.0", "group1.0")
    t.optimizer.add_param_group({"params": list(t.model[2].parameters())})
    t.step()
    assert steady.stats.names == ("group0.0", "group1.0", "group2.0", "group2.1")
    assert t.norm() == pytest.approx(0.1, rel=1e-6)


def test_groups_by_name_pattern(sgd):
    steady = sg.attach(sgd.optimizer, clip={"0.*": "norm:0.05", "*.bias": "none"}, model=sgd.model)
    sgd.backward()
    before = [g.clone() for g in sgd.grads()]
    sgd.optimizer.step()
    after = sgd.grads()
    first = math.sqrt(sum(g.double().norm().item() ** 2 for g in after[:2]))
    assert first == pytest.approx(0.05, rel=1e-6)
    assert torch.equal(after[2], before[2])
    assert torch.equal(after[3], before[3])
    assert steady.last.action == "clip"
    _check_direction(steady.last, before, after)


def test_tensor_norm_tells_norm_and_direction_of_what_is_left(sgd):
    steady = sg.attach(sgd.optimizer, clip="tensor-norm:0.1")
    sgd.backward()
    before = [g.clone() for g in sgd.grads()]
    sgd.optimizer.step()
    assert max(g.double().norm().item() for g in sgd.grads()) == pytest.approx(0.1, rel=1e-6)
    _check_direction(steady.last, before, sgd.grads())


def test_value_tells_norm_and_direction_of_what_is_left(sgd):
    steady = sg.attach(sgd.optimizer, clip="value:0.02")
    sgd.backward()
    before = [g.clone() for g in sgd.grads()]
    sgd.optimizer.step()
    bound = torch.tensor(0.02)
    assert all(
        torch.equal(a, b.clamp(-bound, bound)) for a, b in zip(sgd.grads(), before, strict=True)
    )
    assert steady.last.threshold == 0.02
    assert steady.last.action == "clip"
    _check_direction(steady.last, before, sgd.grads())


def _check_direction(record, before, after):
    g = torch.cat([x.double().flatten() for x in before])
    a = torch.cat([x.double().flatten() for x in after])
    assert 0 < record.coef < 1
    assert record.coef == pytest.approx((a.norm() / g.norm()).item(), rel=1e-6)
    assert record.cosine == pytest.approx((a @ g / (a.norm() * g.norm())).item(), rel=1e-6)
    assert record.cosine < 0.9999


def test_the_angle_is_unknown_where_the_norms_are_not_2_norms(sgd):
    steady = sg.attach(sgd.optimizer, clip="tensor-norm:0.01,p=inf")
    sgd.step()
    assert math.isnan(steady.last.cosine)
    assert steady.last.coef == pytest.approx(0.01 / steady.last.norm)


def test_any_norm(sgd):
    steady = sg.attach(sgd.optimizer, clip="norm:0.1,p=inf")
    sgd.step()
    assert max(g.abs().max().item() for g in sgd.grads()) == pytest.approx(0.1, rel=1e-6)
    assert steady.stats.norm_type == math.inf


def test_two_optimizers_have_each_their_own(training):
    one, two = training(MAKERS["sgd"]), training(MAKERS["adam"])
    first = sg.attach(one.optimizer, clip="norm:0.1", optimizer_index=0)
    second = sg.attach(two.optimizer, clip="none", optimizer_index=1)
    one.step()
    one.step()
    two.step()
    assert (first.last.step, first.last.optimizer, first.last.action) == (1, 0, "clip")
    assert (second.last.step, second.last.optimizer, second.last.action) == (0, 1, "none")


class Doubled(torch.optim.SGD):
    """A subclass whose step is more than its parent's."""

    def step(self, closure=None):
        return super().step(closure)


def test_a_subclass_that_calls_super_is_one_step(training):
    t = training(lambda m: torch.optim.SGD(m.parameters(), lr=0.1))  # hooks SGD.step itself
    t = training(lambda m: Doubled(m.parameters(), lr=0.1))
    steady = sg.attach(t.optimizer, clip="norm:0.1")
    t.step()
    t.optimizer.step(t.closure())
    t.step(math.nan)
    assert steady.steps == 3
    assert [steady.last.step, steady.last.action] == [2, "skip"]


class Fragile(torch.optim.SGD):
    """Raises in the middle of its step when told to."""

    broken = False

    def step(self, closure=None):
        super().step(closure)
        if self.broken:
            raise OSError("disk")


def test_a_step_that_raised_does_not_silence_the_next(training):
    t = training(lambda m: Fragile(m.parameters(), lr=0.1))
    steady = sg.attach(t.optimizer, clip="norm:0.1")
    t.optimizer.broken = True
    t.backward()
    with pytest.raises(OSError, match="disk"):
        t.optimizer.step()
    t.optimizer.broken = False
    t.step()
    assert steady.steps == 2
    assert steady.last.action == "clip"


def test_a_second_attach_is_an_error_and_leaves_the_first_alone(sgd):
    steady = sg.attach(sgd.optimizer, clip="norm:0.1")
    with pytest.raises(AttachError, match=r"SGD is attached already; call detach\(\)"):
        sg.attach(sgd.optimizer, clip="norm:0.2")
    sgd.step()
    assert steady.last.threshold == 0.1


def test_detach_restores_everything(sgd):
    attributes = set(vars(sgd.optimizer))
    hooks = [
        dict(sgd.optimizer._optimizer_step_pre_hooks),
        dict(sgd.optimizer._optimizer_step_post_hooks),
    ]
    gc.collect()  # optimizers of other tests that were dropped while attached
    code = torch.amp.GradScaler.step.__code__
    of_others = dict(_global_forward_pre_hooks)
    steady = sg.attach(sgd.optimizer, clip="norm:0.1", model=sgd.model)
    assert torch.amp.GradScaler.step.__code__ is not code
    sgd.step()
    steady.detach()
    steady.detach()  # twice is once
    assert torch.amp.GradScaler.step.__code__ is code
    assert set(vars(sgd.optimizer)) == attributes
    assert [
        dict(sgd.optimizer._optimizer_step_pre_hooks),
        dict(sgd.optimizer._optimizer_step_post_hooks),
    ] == hooks
    assert dict(_global_forward_pre_hooks) == of_others
    sgd.backward(100.0)
    before = [g.clone() for g in sgd.grads()]
    sgd.optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(sgd.grads(), before, strict=True))
    assert steady.steps == 1
    sg.attach(sgd.optimizer).detach()  # and it can be attached again


def test_a_context_manager_detaches_also_after_an_error(sgd):
    with pytest.raises(OSError, match="x"), sg.attach(sgd.optimizer):
        raise OSError("x")
    assert not hasattr(sgd.optimizer, scaler.HANDLE)


def test_copies_and_pickles_warn_at_their_first_step_only(sgd):
    steady = sg.attach(sgd.optimizer, clip="norm:0.1")
    pickled = io.BytesIO()
    torch.save(sgd.optimizer, pickled)
    pickled.seek(0)
    for made in (
        copy.deepcopy(sgd.optimizer),
        pickle.loads(pickle.dumps(sgd.optimizer)),
        torch.load(pickled, weights_only=False),
    ):
        with pytest.warns(SteadyGradWarning, match=r"a copy of an optimizer .* on the copy"):
            made.step()
        made.step()
    steady.detach()
    copy.deepcopy(sgd.optimizer).step()  # a copy of a detached one says nothing


class HandsOverEverything(torch.optim.SGD):
    """Its state for copies and pickles is all its attributes, as in apex."""

    def __getstate__(self):
        return self.__dict__


@pytest.mark.parametrize("again", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_of_a_class_that_hands_over_all_its_attributes(training, again, tmp_path):
    t = training(lambda m: HandsOverEverything(m.parameters(), lr=0.1))
    steady = sg.attach(t.optimizer, clip="norm:0.001", run=tmp_path / "run.db")
    t.step()
    second = again(t.optimizer)
    assert not {"_steadygrad", "__getstate__"} & vars(second).keys()
    with pytest.warns(SteadyGradWarning, match="a copy of an optimizer"):
        second.step()
    assert steady.steps == 1
    steady.detach()


def test_wrapped_optimizers_are_unwrapped(training):
    accelerate = pytest.importorskip("accelerate")  # `make test-torch` has it not
    accelerate.Accelerator(cpu=True)
    t = training(MAKERS["sgd"])
    wrapped = accelerate.optimizer.AcceleratedOptimizer(t.optimizer)
    steady = sg.attach(wrapped, clip="norm:0.1")
    assert steady.optimizer is t.optimizer
    t.backward()
    wrapped.step()
    assert steady.last.action == "clip"


def test_what_cannot_be_attached_to_is_refused(sgd):
    with pytest.raises(AttachError, match=r"needs a torch optimizer, got Sequential; type"):
        sg.attach(sgd.model)
    with pytest.raises(UsageError, match=r"clip must be a spec such as 'norm:1.0'.*got 1.0"):
        sg.attach(sgd.optimizer, clip=1.0)
    with pytest.raises(SpecError, match="no method named"):
        sg.attach(sgd.optimizer, clip="norn:1")
    with pytest.raises(SpecError, match="max_norm must be a number over 0"):
        sg.attach(sgd.optimizer, clip="norm:-1")
    with pytest.raises(UsageError, match="skip, raise, zero, propagate, got 'ignore'"):
        sg.attach(sgd.optimizer, on_nonfinite="ignore")
    with pytest.raises(UsageError, match="either model= or names="):
        sg.attach(sgd.optimizer, model=sgd.model, names={})
    with pytest.raises(UsageError, match=r"model must be a torch.nn.Module, got generator"):
        sg.attach(sgd.optimizer, model=sgd.model.parameters())
    assert not hasattr(sgd.optimizer, scaler.HANDLE)
    with pytest.raises(UsageError, match="no step yet"):
        _ = sg.attach(sgd.optimizer).last


def test_a_step_without_any_gradient_warns_once(sgd):
    steady = sg.attach(sgd.optimizer, clip=ClipNorm(1.0))
    with pytest.warns(NoGradientsWarning, match=r"step 0: no parameter of this SGD has a gradient"):
        sgd.optimizer.step()
    sgd.optimizer.step()
    assert (steady.last.step, steady.last.norm, steady.last.action) == (1, 0.0, "none")


def test_a_parameter_without_a_gradient_does_not_count(sgd):
    steady = sg.attach(sgd.optimizer, clip="norm:0.1")
    sgd.backward()
    sgd.model[0].weight.grad = None
    norm = sgd.norm()
    sgd.optimizer.step()
    assert steady.stats.names == ("group0.1", "group0.2", "group0.3")
    assert steady.last.norm == pytest.approx(norm)


def test_an_attached_optimizer_can_be_collected(training):
    t = training(MAKERS["sgd"])
    sg.attach(t.optimizer, clip="norm:0.1", model=t.model)
    t.step()
    reference = weakref.ref(t.optimizer)
    del t
    gc.collect()
    assert reference() is None


def test_losses_told_are_summed_for_the_next_step(sgd):
    steady = sg.attach(sgd.optimizer)
    steady.observe_loss(torch.tensor(1.5, requires_grad=True))
    steady.observe_loss(2.0)
    sgd.step()
    assert steady.last.loss == 3.5
    sgd.step()
    assert math.isnan(steady.last.loss)
    sgd.optimizer.step(sgd.closure())
    assert steady.last.loss > 0  # a closure's own value


def test_sparse_gradients_are_clipped(training):
    embedding = torch.nn.Embedding(10, 4, sparse=True)
    optimizer = torch.optim.SparseAdam(embedding.parameters(), lr=0.1)
    steady = sg.attach(optimizer, clip="norm:0.5")
    embedding(torch.tensor([1, 1, 7])).sum().backward()
    optimizer.step()
    assert steady.last.norm == pytest.approx(math.sqrt(4 * 4 + 4))
    assert embedding.weight.grad.to_dense().norm().item() == pytest.approx(0.5)
    steady.detach()
    sg.attach(optimizer, clip="value:0.1")
    embedding.weight.grad = None
    embedding(torch.tensor([1, 1, 7])).sum().backward()
    optimizer.step()
    assert sorted(set(embedding.weight.grad.to_dense().flatten().tolist())) == pytest.approx(
        [0, 0.1]
    )
