"""The code that is shown for a NaN's origin, run on what showed the fault."""

from __future__ import annotations

from typing import Any

import pytest

from steadygrad.rules.evidence import origins
from steadygrad.rules.evidence.view import View
from steadygrad.runlog import Event, Run
from steadygrad.runlog.origin import Origin, Range
from steadygrad.vocabulary import NAN_ORIGIN

torch = pytest.importorskip("torch")  # `make test-core` has none
F = torch.nn.functional
INF = float("inf")


def fix(operation: str, *inputs: torch.Tensor, phase: str = "forward", **rest: Any) -> str:
    """What is shown where the finder saw this operation given these tensors."""
    ranges = []
    for place, tensor in enumerate(inputs):
        finite = tensor[torch.isfinite(tensor)].float()
        ends = (finite.min().item(), finite.max().item()) if len(finite) else (float("nan"),) * 2
        bad = int((~torch.isfinite(tensor)).sum())
        ranges.append(Range(f"input {place}", tuple(tensor.shape), "float32", *ends, bad))
    origin = Origin(3, phase, operation, inputs=tuple(ranges), replayed=True, **rest)
    run = Run.from_arrays(
        steps={"norm": [1.0] * 9}, events=[Event(3, 0.0, NAN_ORIGIN, origin.as_json())]
    )
    (told,) = origins.fixes(View(run, 0))
    return told


def after(code: str, result: str, **names: Any) -> torch.Tensor:
    """What the code makes of these names."""
    scope = {"torch": torch, "F": F, **names}
    exec(code, scope)
    made = scope[result]
    assert isinstance(made, torch.Tensor)
    return made


def leaf(values: Any) -> torch.Tensor:
    return torch.tensor(values, requires_grad=True)


def test_a_row_that_is_masked_whole() -> None:
    scores = leaf([[1.0, 2.0], [-INF, -INF]])
    assert torch.softmax(scores, -1).isnan().any()
    better = after(fix("Tensor.softmax", scores.detach()), "scores", scores=scores).softmax(-1)
    better[:, 0].sum().backward()
    assert better.isfinite().all()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


def test_a_batch_whose_labels_are_all_ignored() -> None:
    logits, labels = torch.randn(4, 3, requires_grad=True), torch.full((4,), -100)
    assert F.cross_entropy(logits, labels).isnan()
    code = fix("F.cross_entropy", logits.detach())
    loss = after(code, "loss", logits=logits, labels=labels)
    loss.backward()
    assert loss == 0
    some = torch.tensor([0, -100, 2, 1])
    torch.testing.assert_close(
        after(code, "loss", logits=logits, labels=some), F.cross_entropy(logits, some)
    )


def test_an_infinity_that_is_divided_by_a_learned_number() -> None:
    x, d = torch.tensor([0.3, -INF]), leaf(0.07)
    torch.softmax(x / d, 0)[0].backward()
    assert d.grad is not None
    assert d.grad.isnan()
    d.grad = None
    code = fix("DivBackward0", x, d.detach(), phase="backward")
    torch.softmax(after(code, "y", x=x, d=d), 0)[0].backward()
    assert d.grad.isfinite()


def test_a_divisor_of_0_is_still_the_divisor() -> None:
    assert "d.clamp_min" in fix("Tensor.__truediv__", torch.ones(2), torch.zeros(2))


@pytest.mark.parametrize("name", ["log", "sqrt"])
def test_a_negative_number_is_said_to_be_one(name: str) -> None:
    x = leaf([-0.4, 0.5])
    code = fix(f"torch.{name}", x.detach())
    assert "x is negative here" in code
    y = after(code, "y", x=x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_an_exponential_in_the_branch_that_where_does_not_take() -> None:
    x = leaf([-1.0, 91.0])
    torch.where(x <= 0, torch.exp(x), 1 + x).sum().backward()
    assert x.grad is not None
    assert x.grad.isnan().any()
    x.grad = None
    code = fix("ExpBackward0", x.detach(), phase="backward", source="torch.where(a <= 0, ...)")
    assert "mask before the operation" in code
    first = "\n".join(line for line in code.splitlines() if line.startswith("y = torch.exp"))
    torch.where(x <= 0, after(first, "y", x=x), 1 + x).sum().backward()
    assert x.grad.isfinite().all()


def test_a_root_at_0() -> None:
    x = leaf([0.0, 4.0])
    y = after(fix("SqrtBackward0", x.detach(), phase="backward"), "y", x=x)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_rows_or_columns_of_the_data() -> None:
    bad = torch.randn(6, 3)
    bad[:, 1] = 2.0
    scaled = (bad - bad.mean(0)) / bad.std(0)
    code = fix("data", scaled, phase="input", rows=(0,), rows_total=6, batch=6)
    assert after(code, "x", x=bad, batch=scaled).isfinite().all()
    code = fix("data", scaled, phase="input", rows=(2,), rows_total=1, batch=6)
    one = torch.randn(6, 3)
    one[2] = INF
    assert len(after(code, "batch", batch=one, target=torch.arange(6))) == 5
