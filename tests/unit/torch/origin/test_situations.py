"""Trainings of many shapes: the origin is found, or it is said why it cannot be."""

from __future__ import annotations

import gc
import inspect
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import steadygrad.torch as sg
from steadygrad.errors import NaNOriginWarning, NonFiniteError
from steadygrad.runlog import open_run
from steadygrad.runlog.origin import Origin
from steadygrad.vocabulary import NAN_ORIGIN


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NaNOriginWarning)
        yield


def attached(model: nn.Module, **options: Any) -> tuple[Any, Any]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return optimizer, sg.attach(optimizer, clip="none", find_nan=True, model=model, **options)


def here(offset: int = 0) -> int:
    """Number of the line that calls this."""
    return sys._getframe(1).f_lineno + offset


class Log(nn.Module):
    """A linear layer and a logarithm of what it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(3, 3)
        nn.init.constant_(self.lin.weight, 0.1)
        nn.init.constant_(self.lin.bias, 0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.log(self.lin(x).relu())

    @classmethod
    def line(cls) -> int:
        return inspect.getsourcelines(cls.forward)[1] + 1


def test_the_answer_says_everything() -> None:
    model = nn.Sequential(nn.Linear(3, 3), Log())
    with torch.no_grad():
        model[1].lin.bias.fill_(1.0)
        model[1].lin.weight.fill_(0.1)
    optimizer, steady = attached(model)
    x = torch.zeros(8, 3)
    x[[2, 5], 0] = torch.tensor([1e4, 1e4])
    with torch.no_grad():
        model[0].weight.fill_(-1.0)
        model[0].bias.fill_(0.5)
    with steady:
        model(x).square().mean().backward()
        optimizer.step()
    origin = steady.origin
    assert origin is not None
    assert (origin.phase, origin.operation, origin.first_kind) == ("forward", "torch.log", "inf")
    assert (origin.module, origin.module_type) == ("1", "Log")
    assert (origin.line, origin.source) == (Log.line(), "return torch.log(self.lin(x).relu())")
    assert (origin.rows, origin.rows_total, origin.batch) == ((2, 5), 2, 8)
    assert origin.inputs[0].low == 0.0
    assert origin.inputs[0].shape == (8, 3)
    assert "Rows 2, 5 of the batch's 8 cause it" in str(origin)


def test_inf_before_nan_is_told() -> None:
    model = nn.Linear(2, 2)
    optimizer, steady = attached(model)
    with steady:
        grown = torch.exp(model(torch.full((4, 2), 1e5)).abs())
        at = here(-1)
        (grown - grown.mean()).sum().backward()
        optimizer.step()
    assert steady.origin.line == at
    assert steady.origin.first_kind == "inf"
    assert steady.origin.then.startswith("inf came first, NaN followed in Tensor.sub")


def test_the_run_file_holds_the_answer(tmp_path: Any) -> None:
    model = Log()
    optimizer, steady = attached(model, run=tmp_path / "run.db")
    with steady:
        model(torch.zeros(2, 3) * model.lin.weight.detach()[0, 0] - 1e9).sum().backward()
        optimizer.step()
    events = [e for e in open_run(tmp_path / "run.db").events if e.kind == NAN_ORIGIN]
    assert [Origin.from_json(e.data) for e in events] == [steady.origin]
    assert events[0].step == 0


def test_a_raised_error_names_the_line() -> None:
    model = nn.Linear(3, 1)
    optimizer, steady = attached(model, on_nonfinite="raise")
    with steady:
        loss = (model(torch.ones(2, 3)) / 0).sum()
        at = here(-1)
        loss.backward()
        with pytest.raises(NonFiniteError, match=rf"weight \(3 of 3.*:{at}: loss ="):
            optimizer.step()


def test_a_warning_names_the_line() -> None:
    model = Log()
    optimizer, steady = attached(model)
    with steady:
        model(torch.full((2, 3), -1e9)).sum().backward()
        with pytest.warns(NaNOriginWarning, match=rf":{Log.line()}: return"):
            optimizer.step()


def test_a_loss_that_is_infinite_alone_is_an_origin_too() -> None:
    model = nn.Linear(2, 1)
    optimizer, steady = attached(model)
    with steady:
        out = model(torch.ones(3, 2)).sum()
        loss = out + torch.log(torch.zeros(()))
        at = here(-1)
        loss.backward()
        optimizer.step()
        assert all(p.grad.isfinite().all() for p in model.parameters())
    assert (steady.origin.line, steady.origin.operation) == (at, "torch.log")


def test_broken_weights_are_said_to_be_broken() -> None:
    model = nn.Linear(2, 1)
    optimizer, steady = attached(model)
    with torch.no_grad():
        model.bias.fill_(float("nan"))
    with steady:
        model(torch.ones(3, 2)).sum().backward()
        (model(torch.ones(3, 2)).sum() * 1.0).square().backward()
        optimizer.step()
    assert steady.origin.phase == "weights"
    assert "bias" in steady.origin.operation
    assert "nothing to replay" in str(steady.origin)


def test_answers_end_after_three() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    found = []
    with sg.attach(optimizer, clip="norm:1.0", find_nan=True) as steady:
        for _ in range(5):
            optimizer.zero_grad()
            torch.log(model(torch.ones(3, 2)).sum() * 0).backward()
            optimizer.step()
            found.append(steady.origin.step)
        assert found == [0, 1, 2, 2, 2]
        assert torch._C._len_torch_function_stack() == 0


# -- shapes of training ----------------------------------------------------------------------


def test_accumulation_finds_the_micro_batch() -> None:
    model = Log()
    optimizer, steady = attached(model)
    with torch.no_grad():
        model.lin.bias.fill_(50.0)
    with steady:
        for fill in (0.0, 0.0, -1e9, 0.0):
            model(torch.full((2, 3), fill)).sum().backward()
        optimizer.step()
    assert steady.origin.line == Log.line()


def test_two_optimizers_each_find_their_own() -> None:
    maker, judge = nn.Linear(2, 2), nn.Linear(2, 1)
    first = torch.optim.Adam(judge.parameters(), lr=0.01)
    second = torch.optim.Adam(maker.parameters(), lr=0.01)
    with sg.attach(first, find_nan=True) as one, sg.attach(second, find_nan=True) as two:
        for step in range(3):
            made = maker(torch.randn(4, 2))
            first.zero_grad()
            (judge(torch.randn(4, 2)).mean() - judge(made.detach()).mean()).backward()
            first.step()
            second.zero_grad()
            judge(made * (0.0 if step == 2 else 1.0)).mean().backward(retain_graph=True)
            torch.sqrt(made.square().sum() * (0.0 if step == 2 else 1.0)).backward()
            at = here(-1)
            second.step()
        assert one.origin is None
        assert two.origin.line == at


def test_weights_that_moved_since_are_no_ground_for_a_replay() -> None:
    model = nn.Linear(2, 1)
    one = torch.optim.SGD([model.bias], lr=0.1)
    two = torch.optim.SGD([model.weight], lr=0.1)
    with sg.attach(one, find_nan=True), sg.attach(two, find_nan=True) as steady:
        model(torch.ones(3, 2)).sum().backward()
        one.step()
        two.step()
        one.zero_grad()
        two.zero_grad()
        (model(torch.ones(3, 2)) / 0).sum().backward()
        one.step()
        two.step()
    assert not steady.origin.replayed
    assert "another optimizer has changed weights" in steady.origin.why_not


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.LBFGS])
def test_closures(kind: Any) -> None:
    model = nn.Linear(3, 1)
    optimizer = kind(model.parameters(), lr=0.1)
    with sg.attach(optimizer, find_nan=True) as steady:
        at = here(4)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = torch.log((model(torch.ones(2, 3)) * 0.0).sum())
            loss.backward()
            return loss

        optimizer.step(closure)
    assert steady.origin.line == at


def test_a_custom_recurrent_loop() -> None:
    cell = nn.RNNCell(2, 4)
    optimizer, steady = attached(cell)
    with steady:
        state = torch.zeros(3, 4)
        for t in range(5):
            state = cell(torch.randn(3, 2), state) * 10.0 ** (10 * t)
            at = here(-1)
        state.sum().backward()
        optimizer.step()
    assert steady.origin.line == at


def test_a_loop_of_bare_tensors() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with sg.attach(optimizer, find_nan=True) as steady:
        for edge in (1.0, 0.0):
            optimizer.zero_grad()
            length = (weight * edge).square().sum().sqrt()
            at = here(-1)
            (length + weight.sum()).backward()
            optimizer.step()
    assert (steady.origin.phase, steady.origin.line) == ("backward", at)
    assert steady.origin.operation == "SqrtBackward0"


def test_a_hidden_state_carried_from_step_to_step() -> None:
    model = nn.GRU(2, 3, batch_first=True)
    optimizer, steady = attached(model)
    state = torch.zeros(1, 4, 3)
    with steady:
        for step in range(3):
            optimizer.zero_grad()
            out, state = model(torch.randn(4, 2, 2), state)
            (out.sum() / (0.0 if step == 2 else 1.0)).backward()
            at = here(-1)
            optimizer.step()
            state = state.detach()
    assert steady.origin.line == at


# -- mixed precision -------------------------------------------------------------------------


def test_autocast_is_replayed_as_it_was() -> None:
    model = nn.Linear(2, 2)
    optimizer, steady = attached(model)
    with torch.no_grad():
        model.weight.fill_(1.0)
    with steady, torch.autocast("cpu", dtype=torch.float16):
        out = model(torch.full((3, 2), 6e4))
        at = here(-1)
        out.float().sum().backward()
        optimizer.step()
    assert steady.origin.line == at
    assert steady.origin.operation == "F.linear"


def scaled_step(scaler: Any, loss: torch.Tensor, optimizer: Any) -> None:
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()


def test_a_scaler_that_searches_is_not_accused() -> None:
    model = nn.Linear(2, 1)
    optimizer, steady = attached(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    with steady:
        for _ in range(4):
            scaled_step(scaler, model(torch.ones(3, 2)).square().sum() * 8, optimizer)
    assert steady.steps == 4
    assert steady.origin is None


def test_a_loss_that_is_nan_under_a_scaler_is_explained() -> None:
    model = nn.Linear(2, 1)
    optimizer, steady = attached(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with steady:
        loss = torch.log(model(torch.ones(3, 2)).sum() * 0)
        at = here(-1)
        scaled_step(scaler, loss, optimizer)
    assert steady.origin.line == at


# -- what is compiled, scripted or recomputed --------------------------------------------------


@pytest.fixture
def compiler() -> Iterator[None]:
    """Forgets afterwards: nothing watches modules in a process that has compiled any."""
    gc.collect()  # handles of tests before, which go with their optimizers
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("compiler")
def test_a_compiled_model_is_replayed_eagerly() -> None:
    model = torch.compile(Log(), backend="eager")
    optimizer, steady = attached(model)
    with steady:
        model(torch.full((2, 3), -1e9)).sum().backward()
        optimizer.step()
    assert steady.origin.line == Log.line()


# with warnings as errors torch fails on its own here, attached to or not
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.usefixtures("compiler")
def test_a_compiled_function_is_left_whole_and_said_to_be_unseen() -> None:
    model = nn.Linear(2, 1)

    @torch.compile(backend="eager", fullgraph=True)
    def loss_of(x: torch.Tensor) -> torch.Tensor:
        return torch.log(F.relu(x) * 0).sum()

    optimizer, steady = attached(model)
    with steady:
        loss_of(model(torch.ones(3, 2))).backward()
        optimizer.step()
    assert steady.origin is not None
    assert steady.origin.replayed or "compiled" in steady.origin.why_not


class _Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return 2.0 * grad * ctx.saved_tensors[0]


# torch makes this warning itself while it compiles, attached to or not
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.usefixtures("compiler")
def test_what_is_patched_can_be_compiled_whole() -> None:
    model = nn.Linear(2, 2)
    weights = {name: value.detach().clone() for name, value in model.named_parameters()}

    def everything(x: torch.Tensor) -> torch.Tensor:
        x = _Square.apply(model(x)) + torch.func.functional_call(model, weights, (x,))
        return torch.vmap(lambda row: row.square().sum())(x)

    x = torch.randn(3, 2)
    expected = everything(x)
    _, steady = attached(model)
    with steady:
        compiled = torch.compile(everything, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), expected)


def test_a_scripted_module_is_named_as_a_whole() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inner = torch.jit.script(Log())
    model = nn.Sequential(nn.Linear(3, 3), inner)
    nn.init.constant_(model[0].bias, -1e9)
    optimizer, steady = attached(model)
    with steady:
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
    assert steady.origin.replayed
    assert steady.origin.module == "1"


def test_checkpointing_is_replayed() -> None:
    inner = Log()
    model = nn.Linear(3, 3)
    parameters = [*inner.parameters(), *model.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.01)
    with sg.attach(optimizer, find_nan=True) as steady:
        out = checkpoint(inner, model(torch.ones(2, 3)) * 0 - 1e9, use_reentrant=False)
        out.sum().backward()
        optimizer.step()
    assert steady.origin.line == Log.line()


def test_reentrant_checkpointing_is_said_to_be_in_the_way() -> None:
    class Checked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return checkpoint(lambda y: (self.lin(y) * 0).sqrt(), x, use_reentrant=True)

    model = nn.Sequential(nn.Linear(3, 3), Checked())
    optimizer, steady = attached(model)
    with steady:
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
    assert not steady.origin.replayed
    assert "use_reentrant=False" in steady.origin.why_not


# -- where a replay is impossible --------------------------------------------------------------


def test_a_batch_changed_in_place_is_noticed() -> None:
    model = nn.Linear(3, 1)
    optimizer, steady = attached(model)
    target = torch.ones(4, 3)
    with steady:
        loss = torch.log((model(torch.ones(4, 3)) - target).sum() * 0)
        loss.backward()
        target.mul_(2.0)
        optimizer.step()
    origin = steady.origin
    assert "of shape (4, 3) was changed in place" in origin.why_not
    assert not origin.replayed
    assert origin.tensors
    assert "turned non-finite in" in str(origin)


def test_a_changed_gradient_is_no_fault_of_the_graph() -> None:
    model = nn.Linear(3, 1)
    optimizer, steady = attached(model)
    with steady:
        model(torch.ones(4, 3)).sum().backward()
        model.weight.grad.div_(0.0)
        optimizer.step()
    assert "between backward() and the step changed the gradients" in steady.origin.why_not
    assert steady.origin.tensors == ("weight",)


def test_a_forward_that_raises_again_is_no_crash() -> None:
    class Once(nn.Module):
        def __init__(self, calls: dict[str, int]) -> None:
            super().__init__()
            self.lin, self.calls = nn.Linear(3, 1), calls

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls = {**self.calls}
            if OUTSIDE.append(1) or len(OUTSIDE) > 1:
                raise KeyError("only once")
            return self.lin(x) / 0

    OUTSIDE: list[int] = []
    model = Once({})
    optimizer, steady = attached(model)
    with steady:
        model(torch.ones(4, 3)).sum().backward()
        optimizer.step()
    assert "the replay raised KeyError" in steady.origin.why_not


def test_sharded_weights_are_not_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(3, 1))
    optimizer, steady = attached(model)
    model.__class__ = type("FSDPSequential", (nn.Sequential,), {})
    with steady:
        (model(torch.ones(4, 3)) / 0).sum().backward()
        optimizer.step()
    assert "sharded over ranks (FSDP)" in steady.origin.why_not
