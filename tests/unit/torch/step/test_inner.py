"""Optimizers that wrap another one, and those that act before they evaluate their closure."""

from __future__ import annotations

import collections
import copy
import math
import pickle
import types

import pytest
import torch

import steadygrad.torch as sg
from steadygrad.errors import NoGradientsWarning
from steadygrad.torch.step.snapshot import same_bits

from ....optimizers import Lookahead, Remembers, SlowWeights


class Sam(torch.optim.Optimizer):
    """Sharpness-aware minimisation, after Foret et al. (2021): first and second step."""

    def __init__(self, params, rho=0.05, **options):
        super().__init__(params, {"rho": rho, **options})
        self.base_optimizer = torch.optim.SGD(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self):
        held = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in held]).norm()
        for p in held:
            self.state[p]["old"] = p.data.clone()
            p.add_(p.grad * (self.param_groups[0]["rho"] / (norm + 1e-12)))
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data = self.state[p]["old"]
        self.base_optimizer.step()

    def step(self, closure=None):
        assert closure is not None
        closure = torch.enable_grad()(closure)
        self.first_step()
        closure()
        self.second_step()


class SamThatMeasures(Sam):
    """Evaluates the closure for both of its gradients."""

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure()
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()
        return loss


class EveryFifth(Sam):
    """Perturbs at some steps only; between them it is its inner optimizer."""

    count = 0

    def step(self, closure=None):
        self.count += 1
        return self.base_optimizer.step(closure) if self.count % 5 else super().step(closure)


class ScheduleFree(torch.optim.Optimizer):
    """Moves the weights to another point before it evaluates, as schedule-free methods do."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr, "k": 0})

    @torch.no_grad()
    def step(self, closure):
        group = self.param_groups[0]
        for p in group["params"]:
            self.state[p].setdefault("z", p.detach().clone())
            p.lerp_(self.state[p]["z"], 0.1)
        with torch.enable_grad():
            loss = closure()
        group["k"] += 1
        for p in group["params"]:
            self.state[p]["z"].sub_(p.grad, alpha=group["lr"])
            p.lerp_(self.state[p]["z"], 1 / (group["k"] + 1))
        return loss


class BareLookahead(SlowWeights):
    """One that makes its inner optimizer, and hands on what that has."""

    def __init__(self, params):
        super().__init__(torch.optim.Adam(params, lr=0.1))
        self.defaults = dict(self.optimizer.defaults)

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self):
        slow = [self.state[p] for p in self.param_groups[0]["params"] if p in self.state]
        return {"slow": slow, "inner": self.optimizer.state_dict()}


MAKERS = {
    "remembers": lambda m: Remembers(m.parameters()),
    "sam": lambda m: Sam(m.parameters(), lr=0.05, momentum=0.9),
    "sam that measures": lambda m: SamThatMeasures(m.parameters(), lr=0.05, momentum=0.9),
    "sam every fifth": lambda m: EveryFifth(m.parameters(), lr=0.05, momentum=0.9),
    "schedule-free": lambda m: ScheduleFree(m.parameters()),
    "lookahead": lambda m: Lookahead(m.parameters()),
    "lookahead without hooks": lambda m: BareLookahead(m.parameters()),
    "lbfgs": lambda m: torch.optim.LBFGS(m.parameters(), max_iter=4, lr=0.5),
    "wolfe": lambda m: torch.optim.LBFGS(m.parameters(), max_iter=4, line_search_fn="strong_wolfe"),
    "adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.1),
}
every = pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)


def step(t, closure):
    t.backward()  # SAM reads the gradients that are there
    return t.optimizer.step(closure)


def counted(closure, modes):
    """A closure that also notes whether gradients were enabled when it was called."""

    def evaluate():
        modes.append(torch.is_grad_enabled())
        return closure()

    return evaluate


def inner_state(t):
    inner = getattr(t.optimizer, "base_optimizer", None) or getattr(t.optimizer, "inner", [None])[0]
    return None if inner is None else inner.state_dict()


def all_of(t):
    return [*t.everything(), pickle.loads(pickle.dumps(inner_state(t)))]


@every
@pytest.mark.parametrize(
    ("clip", "guard"), [("none", None), ("norm:1e9", "skip"), ("none", "raise")]
)
def test_observing_changes_no_bit_no_value_and_no_number_of_evaluations(
    training, maker, clip, guard
):
    t, plain = training(maker), training(maker)
    steady = sg.attach(t.optimizer, clip=clip, on_nonfinite=guard)
    ours, theirs = [], []
    for _ in range(6):
        value = step(t, counted(t.closure(), ours))
        expected = step(plain, counted(plain.closure(), theirs))
        assert value is expected is None or value.item() == expected.item()
    assert same_bits(all_of(t), all_of(plain))
    assert ours == theirs
    assert steady.steps == 6


@every
def test_clipping_is_a_clip_call_at_the_end_of_the_closure(training, maker):
    t, by_hand = training(maker), training(maker)
    steady = sg.attach(t.optimizer, clip="norm:0.05")

    def clipped():
        loss = by_hand.backward()
        sg.clip_grad_norm_(by_hand.model.parameters(), 0.05)
        return loss

    for _ in range(6):
        step(t, t.closure())
        step(by_hand, clipped)
    assert same_bits(all_of(t), all_of(by_hand))
    assert steady.last.action == "clip"


@every
@pytest.mark.parametrize("warm", [False, True], ids=["first-step", "warm"])
def test_a_skipped_step_leaves_every_bit_of_the_inner_optimizer_too(training, maker, warm):
    t, twin = training(maker), training(maker)
    steady = sg.attach(t.optimizer, clip="norm:1e9")
    for _ in range(5 if warm else 0):
        step(t, t.closure())
        step(twin, twin.closure())
    t.backward()
    before = all_of(t)
    count = getattr(t.optimizer, "count", None)
    t.optimizer.step(t.closure([math.nan]))
    assert same_bits(all_of(t), before)
    assert (
        same_bits(count, getattr(t.optimizer, "count", None))
        or "Every" in type(t.optimizer).__name__
    )
    assert steady.last.action == "skip"
    if isinstance(t.optimizer, EveryFifth):
        t.optimizer.count = twin.optimizer.count
    for _ in range(2):
        step(t, t.closure())
        step(twin, twin.closure())
    assert same_bits(all_of(t), all_of(twin))


@pytest.mark.parametrize("name", ["lookahead", "lookahead without hooks"])
def test_a_wrapper_stepped_without_a_closure_is_skipped_with_its_inner_one(training, name):
    t = training(MAKERS[name])
    steady = sg.attach(t.optimizer)
    t.step()
    before, count = all_of(t), copy.deepcopy(getattr(t.optimizer, "count", None))
    t.step(math.nan)
    assert same_bits(all_of(t), before)
    assert same_bits(count, getattr(t.optimizer, "count", None))
    assert steady.last.action == "skip"


def test_hooks_that_an_optimizer_lacks_are_its_own_and_go_when_it_is_detached(training):
    t, other = (
        training(MAKERS["lookahead without hooks"]),
        training(MAKERS["lookahead without hooks"]),
    )
    scheduler = torch.optim.lr_scheduler.ConstantLR(t.optimizer, factor=1.0)
    own = vars(t.optimizer).copy()
    steady = sg.attach(t.optimizer, clip="norm:1e9")
    for _ in range(2):
        t.step()
        other.step()  # the class is as it was
        scheduler.step()
    assert steady.steps == 2
    steady.detach()
    t.step()
    assert steady.steps == 2
    assert vars(t.optimizer).keys() - own.keys() <= {"_opt_called"}  # by the scheduler
    assert vars(t.optimizer)["step"] is own["step"]  # the scheduler's
    later = sg.attach(other.optimizer, clip="norm:1e9")
    torch.optim.lr_scheduler.ConstantLR(other.optimizer, factor=1.0)
    other.step()
    assert later.steps == 1


def test_attaching_and_its_trial_change_nothing(training):
    t = training(MAKERS["lookahead"])
    t.step()
    before, random = all_of(t), torch.get_rng_state()
    grads = [p.grad.clone() for p in t.model.parameters()]
    sg.attach(t.optimizer)
    assert same_bits(all_of(t), before)
    assert same_bits(grads, [p.grad for p in t.model.parameters()])
    assert torch.equal(random, torch.get_rng_state())
    assert t.optimizer.count.item() == 1


class OverModel(torch.optim.Optimizer):
    """Steps what it was given beside its groups, out of reach of whoever copies optimizers."""

    def __init__(self, model, kept):
        super().__init__(model.parameters(), {"lr": 0.1})
        self.kept = kept(model)

    @torch.no_grad()
    def step(self, closure=None):
        kept = self.kept() if isinstance(self.kept, types.FunctionType) else self.kept
        for p in kept.parameters() if isinstance(kept, torch.nn.Module) else kept.tensors:
            p.data.sub_(0.1 if p.grad is None else 0.1 * p.grad)  # no version tells of this


class MakesGradients(torch.optim.Optimizer):
    """Makes the gradients that its inner optimizer steps on, as a GSAM with `set_closure` does."""

    def __init__(self, params, base_optimizer):
        super().__init__(params, {})
        self.base_optimizer = base_optimizer

    def step(self, closure=None):
        self.base_optimizer.zero_grad()
        self.make()
        self.base_optimizer.step()


def test_an_optimizer_that_makes_its_gradients_in_its_step_is_told_what_to_attach_to(training):
    t, plain = (
        training(lambda m: MakesGradients(m.parameters(), torch.optim.SGD(m.parameters(), lr=0.1)))
        for _ in range(2)
    )
    steady = sg.attach(t.optimizer)

    def both_step(factor):
        for each in (t, plain):
            each.optimizer.make = each.closure([factor])
            each.optimizer.step()

    with pytest.warns(NoGradientsWarning, match=r"attach\(optimizer.base_optimizer, \.\.\.\)"):
        both_step(1.0)
    both_step(math.nan)
    both_step(1.0)  # would be skipped for the NaN of the step before
    assert t.same_as(plain)
    assert steady.steps == 1


class TakesTheModel(torch.optim.SGD):
    """A step that makes gradients, of a model that can be called as a closure can."""

    def step(self, model, closure_of):
        assert isinstance(model, torch.nn.Module)
        self.zero_grad()
        with torch.enable_grad():
            closure_of()
        return super().step()


def test_a_model_given_to_a_step_is_no_closure_and_reaches_it(training):
    t, plain = (training(lambda m: TakesTheModel(m.parameters(), lr=0.1)) for _ in range(2))
    steady = sg.attach(t.optimizer)

    def both_step(factor):
        for each in (t, plain):
            each.optimizer.step(each.model, each.closure([factor]))

    with pytest.warns(NoGradientsWarning, match="makes its gradients inside its own"):
        both_step(1.0)
    both_step(math.nan)
    both_step(1.0)
    assert t.same_as(plain)
    assert steady.steps == 1


class Counted(torch.optim.SGD):
    """Counts for all its kind, as nobody should."""

    steps, seen = 0, []

    def step(self, closure=None):
        type(self).steps += 1
        self.seen.append(self.steps)
        return super().step()


def test_a_trial_leaves_what_a_class_keeps(training):
    t = training(lambda m: Counted(m.parameters(), lr=0.1))
    sg.attach(t.optimizer)
    assert (Counted.steps, Counted.seen) == (0, [])
    t.step()
    assert (Counted.steps, Counted.seen) == (1, [1])


class ReplacesGradients(torch.optim.Optimizer):
    """Gives its inner optimizer gradients of its own making, as differential privacy does."""

    def __init__(self, params, base_optimizer):
        super().__init__(params, {})
        self.base_optimizer = base_optimizer

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        self.base_optimizer.step()


@pytest.mark.parametrize("clip", ["norm:0.01", "none"])
def test_a_wrapper_that_replaces_what_was_clipped_is_told_of(training, clip, recwarn):
    inner = []

    def make(model):
        inner.append(torch.optim.SGD(model.parameters(), lr=0.1))
        return ReplacesGradients(list(model.parameters()), inner[0])

    t = training(make)
    sg.attach(t.optimizer, clip=clip)
    t.step()
    told = [str(each.message) for each in recwarn if each.category is NoGradientsWarning]
    assert [sentence.count("attach(optimizer.base_optimizer, ...)") for sentence in told] == (
        [] if clip == "none" else [1]
    )


class Hybrid(torch.optim.Optimizer):
    """Moves matrices itself and leaves the other weights, in no group of its own, to an Adam."""

    def __init__(self, params):
        matrices, others = [], []
        for p in params:
            (matrices if p.ndim > 1 else others).append(p)
        self.adam = torch.optim.Adam(others, lr=0.05)
        super().__init__(matrices, {"lr": 0.05})

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.sub_(p.grad.sign(), alpha=0.05)
        self.adam.step()

    def zero_grad(self, set_to_none=True):
        super().zero_grad(set_to_none)
        self.adam.zero_grad(set_to_none)


def test_weights_that_an_inner_optimizer_alone_moves_are_told_of_and_can_be_clipped_too(training):
    told, both, by_hand = (training(lambda m: Hybrid(m.parameters())) for _ in range(3))
    sg.attach(told.optimizer, clip="norm:0.1")
    with pytest.warns(NoGradientsWarning, match=r"moves 2 .*attach\(optimizer.adam, \.\.\.\), too"):
        told.step()
    adam = both.optimizer.adam
    steadies = [sg.attach(each, clip="norm:0.1") for each in (both.optimizer, adam)]
    for _ in range(3):
        both.step()
        by_hand.backward()
        for each in (by_hand.optimizer, by_hand.optimizer.adam):
            sg.clip_grad_norm_(each.param_groups[0]["params"], 0.1)
        by_hand.optimizer.step()
    assert both.same_as(by_hand)
    assert [(steady.last.action, steady.steps) for steady in steadies] == [("clip", 3)] * 2
    both.step(math.nan)
    assert both.same_as(by_hand)
    assert same_bits(adam.state_dict(), by_hand.optimizer.adam.state_dict())


class OverGlobals(torch.optim.Optimizer):
    """Finds its weights where no search from the optimizer comes."""

    @torch.no_grad()
    def step(self, closure=None):
        for p in SOMEWHERE_ELSE:
            if p.grad is not None:
                p.data.sub_(0.1 * p.grad)


SOMEWHERE_ELSE = []


def test_a_trial_has_no_gradients_of_the_training_to_step_on(training, monkeypatch):
    t = training(lambda m: OverGlobals(m.parameters(), {"lr": 0.1}))
    monkeypatch.setitem(globals(), "SOMEWHERE_ELSE", list(t.model.parameters()))
    t.backward()
    before, grads = all_of(t), [p.grad for p in t.model.parameters()]
    sg.attach(t.optimizer)
    assert same_bits(all_of(t), before)
    assert all(p.grad is grad for p, grad in zip(t.model.parameters(), grads, strict=True))


Kept = collections.namedtuple("Kept", ["tensors", "note"])
KEPT = {
    "model": lambda model: model,
    "function": lambda model: lambda: model,
    "tuple": lambda model: Kept(list(model.parameters()), "all"),
    "views": lambda model: Kept([p.detach().view(-1) for p in model.parameters()], "all"),
    "method": lambda model: Kept([next(model.parameters())], model.forward),
}


@pytest.mark.parametrize("kept", KEPT.values(), ids=KEPT)
def test_what_leads_back_from_a_copy_is_not_tried_on_a_copy(training, kept):
    """Its step on a copy would move the weights of the training themselves."""
    t = training(lambda m: OverModel(m, kept))
    t.backward()
    before, grads = all_of(t), [p.grad.clone() for p in t.model.parameters()]
    sg.attach(t.optimizer)
    assert same_bits(all_of(t), before)
    assert same_bits(grads, [p.grad for p in t.model.parameters()])
    t.step(math.nan)
    assert same_bits(all_of(t), before)
    t.step()
    assert not same_bits(all_of(t), before)


def test_what_an_optimizer_keeps_beside_its_state_is_not_written_by_a_trial_or_a_skip(training):
    def ends(factors, clip=None):
        t = training(lambda m: Remembers(m.parameters()))
        steady = sg.attach(t.optimizer, clip=clip) if clip else None
        for factor in factors:
            t.step(factor)
            assert math.isfinite(factor) or steady.last.action == "skip"
        return all_of(t)

    plain = ends([1.0] * 8)
    assert same_bits(ends([1.0] * 8, "norm:1e9"), plain)
    broken = [math.nan, *[1.0] * 4, math.inf, *[1.0] * 4]
    assert same_bits(ends(broken, "norm:1e9"), plain)


def test_a_sam_that_is_never_stepped_itself_is_told_what_to_attach_to(training):
    t = training(MAKERS["sam"])
    sg.attach(t.optimizer)
    t.backward()
    t.optimizer.first_step()
    t.backward()
    with pytest.warns(NoGradientsWarning, match=r"attach\(optimizer.base_optimizer, \.\.\.\)"):
        t.optimizer.second_step()


class Ignores(torch.optim.SGD):
    def step(self, closure=None):
        return super().step()


def test_an_optimizer_that_ignores_its_closure_is_clipped_from_the_first_step_on(training):
    t, by_hand = (training(lambda m: Ignores(m.parameters(), lr=0.1)) for _ in range(2))
    steady = sg.attach(t.optimizer, clip="norm:0.01")
    for factor in (math.nan, 1.0, 1.0):
        t.backward(factor)
        t.optimizer.step(t.closure())
        if not math.isnan(factor):
            by_hand.backward()
            sg.clip_grad_norm_(by_hand.model.parameters(), 0.01)
            by_hand.optimizer.step()
    assert t.same_as(by_hand)
    assert (steady.last.action, steady.steps) == ("clip", 3)


def test_where_a_closure_that_is_ignored_should_make_the_gradients_there_are_none(training):
    t = training(lambda m: Ignores(m.parameters(), lr=0.1))
    steady = sg.attach(t.optimizer, clip="norm:0.01")
    with pytest.warns(NoGradientsWarning, match="step 0: no parameter of this Ignores has a"):
        t.optimizer.step(t.closure())
    t.optimizer.step(t.closure())
    assert steady.steps == 2


def test_where_no_step_may_be_skipped_a_closure_that_is_ignored_shows_at_the_first_step(training):
    t = training(lambda m: Ignores(m.parameters(), lr=0.1))
    steady = sg.attach(t.optimizer, clip="norm:0.01", on_nonfinite="propagate")
    t.backward()
    with pytest.warns(NoGradientsWarning, match="did not evaluate the closure"):
        t.optimizer.step(t.closure())
    assert steady.last.action == "none"
    t.backward()
    t.optimizer.step(t.closure())
    assert (steady.last.action, steady.steps) == ("clip", 2)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_sharded_optimizer_is_skipped_with_its_inner_one(training, tmp_path):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    store = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        t = training(lambda m: ZeroRedundancyOptimizer(m.parameters(), torch.optim.Adam, lr=0.1))
        steady = sg.attach(t.optimizer)
        t.step()
        weights = [p.detach().clone() for p in t.model.parameters()]
        state = pickle.dumps(t.optimizer.optim.state_dict())
        t.step(math.nan)
        assert same_bits(weights, [p.detach() for p in t.model.parameters()])
        assert pickle.dumps(t.optimizer.optim.state_dict()) == state
        assert steady.last.action == "skip"
        t.step()
        assert not same_bits(weights, [p.detach() for p in t.model.parameters()])
    finally:
        torch.distributed.destroy_process_group()
