"""torch.compile, in a fork: once used, it changes what others do in their process."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import weakref

import pytest
import torch

import steadygrad.torch as sg
from steadygrad.kernels import native
from steadygrad.torch.internals import eager

SCRIPT = """
import math, warnings
import torch
import steadygrad.torch as sg

warnings.simplefilter("error", UserWarning)
torch.manual_seed(0)
x = torch.randn(8, 4)


def total(model):
    return math.sqrt(sum(p.grad.double().norm().item() ** 2 for p in model.parameters()))


# names come through, and no hook is traced into the graph
inner = torch.nn.Sequential(torch.nn.Linear(4, 1))
optimizer = torch.optim.SGD(inner.parameters(), lr=0.1)
compiled = torch.compile(inner, backend="eager")
step = torch.compile(optimizer.step, backend="eager")
steady = sg.attach(optimizer, clip="norm:0.1", model=compiled)
assert not torch.nn.modules.module._global_forward_pre_hooks

# a step that was compiled before it was attached to is clipped anew at every step
for factor in (1.0, 3.0, math.nan, 2.0):
    optimizer.zero_grad()
    (compiled(x).pow(2).mean() * factor).backward()
    norm, weight = total(inner), inner[0].weight.detach().clone()
    step()
    assert torch.equal(inner[0].weight, weight) == math.isnan(factor)
    assert steady.last.action == ("skip" if math.isnan(factor) else "clip")
    if factor == factor:
        assert math.isclose(steady.last.norm, norm, rel_tol=1e-12)
        assert math.isclose(total(inner), 0.1, rel_tol=1e-6)
assert steady.steps == 4
assert steady.stats.names == ("0.weight", "0.bias")
steady.detach()


# the drop-ins inside a compiled function
def train(x):
    optimizer.zero_grad()
    inner(x).pow(2).mean().backward()
    norm = sg.clip_grad_norm_(inner.parameters(), 0.1)
    sg.clip_grad_value_(inner.parameters(), 0.05)
    return norm


train = torch.compile(train, backend="eager")
for scale in (3.0, 5.0, 7.0):
    norm = train(x * scale)
    assert 0.1 < norm.item() < 1e3
    assert total(inner) < 0.1
print("done")
"""


def test_clipping_in_and_around_compiled_code(forked):
    done = forked.python(forked.write("compiled.py", SCRIPT))
    assert done.stdout == "done\n", done.stderr


def test_without_torch_the_error_says_what_to_install():
    script = "import sys; sys.modules['torch'] = None; import steadygrad.torch"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert "MissingExtraError: steadygrad.torch needs torch" in done.stderr
    assert 'pip install "steadygrad[torch]"' in done.stderr


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="None has no count of references there")
def test_a_torch_that_gives_away_a_reference_of_none_is_not_asked_again() -> None:
    lost: list[int] = []

    def asked() -> None:
        ctypes.pythonapi.Py_DecRef(ctypes.py_object(None))
        lost.append(1)

    assert not eager.owns_what_it_returns(asked)
    for _ in lost:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(None))
    assert eager.owns_what_it_returns(lambda: None)


def test_a_step_takes_no_reference_of_none(sgd) -> None:
    with sg.attach(sgd.optimizer, clip="norm:0.1"):
        sgd.step()
        before = sys.getrefcount(None)
        for _ in range(200):
            sgd.step()
        assert sys.getrefcount(None) > before - 100


@pytest.mark.parametrize("built", [True, False])
def test_what_is_called_goes_on_to_the_function_while_nothing_traces(
    built: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not built:
        monkeypatch.setattr(native, "GATE", None)
    called: list[str] = []
    tracer: list[object] = [None]
    monkeypatch.setattr(eager, "_tracer", lambda: tracer[0])
    monkeypatch.setattr(eager, "_WATCHERS", (eager._tracer, lambda: 0))
    monkeypatch.setattr(torch.compiler, "disable", lambda function: lambda: called.append("apart"))
    call = eager.eager(lambda: called.append("here"))
    call()
    tracer[0] = object()
    call()
    call()
    assert called == ["here", "apart", "apart"]
    tracer[0] = None
    with pytest.raises(TypeError, match="takes 0 positional arguments"):
        call(1)  # type: ignore[call-arg]


@pytest.mark.skipif(native.GATE is None, reason="the extension is not built")
def test_a_gate_lets_another_function_take_its_place_and_is_freed_in_a_cycle() -> None:
    def made() -> weakref.ref[object]:
        def first() -> int:
            gate.function = lambda: 2
            return 1

        gate = native.GATE(first, first, (lambda: None,))
        assert [gate(), gate()] == [1, 2]
        gate.function = first
        return weakref.ref(first)

    dropped = made()
    gc.collect()
    assert dropped() is None
    with pytest.raises(TypeError):
        native.GATE(abs)
