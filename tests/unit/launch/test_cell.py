"""An observed cell: its steps are recorded, and afterwards libraries are as they were."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
import torch
from IPython.core.compilerop import CachingCompiler

import steadygrad
from steadygrad.launch import undoing
from steadygrad.launch.cell import CellSession, observe
from steadygrad.launch.plan import Plan
from steadygrad.launch.session import Session
from steadygrad.runlog import Run, TrainingStopped
from steadygrad.sinks.listeners import alerts

CELL = "Cell In[3]"


def observed(train: Any, folder: Path, text: str = "", **asked: Any) -> tuple[CellSession, Run]:
    plan = Plan("", cell=CELL, out=str(folder / "run.db"), **asked)
    session = CellSession(plan, text)
    session.start()
    try:
        train()
    finally:
        session.finish()
    return session, steadygrad.open_run(session.path)


def parts() -> tuple[Any, ...]:
    return (
        torch.autograd.backward.__code__,
        torch.nn.utils.clip_grad_norm_.__code__,
        torch.nn.Module.__call__,
        torch.Tensor.backward,
        jax.grad,
        jax.value_and_grad,
        vars(optax.GradientTransformation)["__new__"],
        list(sys.meta_path),
    )


@pytest.mark.parametrize("clip", [None, "norm:0.001"])
def test_torch(tmp_path: Path, clip: str | None) -> None:
    before = parts()
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)  # made in a cell before

    def train() -> None:
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.ones(2, 4)).pow(2).mean().backward()
            optimizer.step()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    session, run = observed(train, tmp_path, clip=clip, find_nan=True)
    train()  # the next cell
    assert session.troubles == []
    assert len(run) == len(steadygrad.open_run(session.path)) == 5
    assert (run.steps.coef < 1).tolist() == [clip is not None] * 5
    assert run.info["script"] == CELL
    assert parts() == before
    assert not optimizer._optimizer_step_pre_hooks
    words = session.words().text
    assert f"{CELL} was observed" in words
    assert "--clip" not in words.replace("%%steadygrad --clip", "")


def test_jax(tmp_path: Path) -> None:
    before = parts()

    def train() -> None:
        tx, params = optax.sgd(0.1), {"w": jnp.ones(2)}
        state = tx.init(params)
        for _ in range(5):
            gradients = jax.grad(lambda p: (p["w"] ** 2).sum())(params)
            updates, state = tx.update(gradients, state, params)
            params = optax.apply_updates(params, updates)

    session, run = observed(train, tmp_path)
    train()
    assert len(run) == len(steadygrad.open_run(session.path)) == 5
    assert parts() == before


def test_an_exception_is_the_cells_own_and_on_record(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    session = CellSession(Plan("", cell=CELL, out=str(tmp_path / "run.db")), "")
    session.start()
    weight.sum().backward()
    optimizer.step()
    session.ended(KeyboardInterrupt())
    session.finish()
    assert steadygrad.open_run(session.path).info["exit"] == "KeyboardInterrupt"


def test_the_source_is_read_too_and_lines_are_the_cells(tmp_path: Path) -> None:
    text = "# %%steadygrad\n\nclip_grad_norm_([p.grad for p in net.parameters()], 1.0)\n"
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)

    def train() -> None:
        weight.sum().backward()
        optimizer.step()

    _, run = observed(train, tmp_path, text)
    assert run.info["lint"] == [{"id": "SG410", "path": CELL, "line": 3}]


def test_an_alert_ends_a_training_in_jax_that_never_comes_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Observed, with optax alone, nobody can raise between two steps: it is interrupted."""
    monkeypatch.setattr(alerts, "BROKEN_SECONDS", 0.05)
    monkeypatch.setattr(alerts, "GRACE_SECONDS", 0.2)

    def train() -> None:
        tx, params = optax.sgd(0.1), {"w": jnp.full(2, jnp.nan)}
        state = tx.init(params)
        while True:
            _, state = tx.update(params, state, params)
            time.sleep(0.01)

    with pytest.raises(TrainingStopped, match="SG1"):
        observed(train, tmp_path, stop_on="error")
    assert steadygrad.open_run(tmp_path / "run.db").info["exit"] == "stopped"


def test_what_a_cell_made_of_jax_opens_no_file_once_it_is_over(tmp_path: Path) -> None:
    session = CellSession(Plan("", cell=CELL, out=str(tmp_path / "run.db")), "")
    session.start()
    tx, params = optax.sgd(0.1), {"w": jnp.ones(2)}
    session.finish()
    tx.update(params, tx.init(params), params)
    assert session.troubles == []
    assert list(tmp_path.iterdir()) == []


def test_a_change_that_cannot_be_taken_back_does_not_keep_the_others() -> None:
    def fail() -> None:
        raise ZeroDivisionError

    library = type("Library", (), {"name": "theirs"})
    undoing.replace(library, "name", "ours")
    undoing.note(fail)
    undoing.note(fail)
    with pytest.raises(ZeroDivisionError):
        undoing.undo_all()
    assert vars(library)["name"] == "theirs"


def test_what_somebody_has_replaced_since_is_left() -> None:
    class Library:
        name = "theirs"

    undoing.replace(Library, "name", "ours")
    undoing.replace(Library, "new", "ours")
    Library.name = "another's"
    undoing.undo_all()
    assert Library.name == "another's"
    assert not hasattr(Library, "new")


class Page:
    """As much of IPython's shell as a cell needs."""

    execution_count = 3

    def __init__(self) -> None:
        self.user_ns: dict[str, Any] = {}
        self.compile = CachingCompiler()
        self.transform_cell = self.transform_ast = lambda code: code


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "and it has no file of its own"),
        (
            "--out own.db --clip norm:1.0",
            "and its own --out own.db and --clip norm:1.0 does not count",
        ),
    ],
)
def test_a_cell_of_what_is_observed_already_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    page: Any = Page()

    def step() -> int:
        model(torch.ones(2, 4)).pow(2).mean().backward()
        optimizer.step()
        return 7

    def train() -> None:
        page.user_ns["step"] = step
        assert observe(page, line, "step()") == 7
        step()  # the one around it goes on

    _, run = observed(train, tmp_path)
    assert len(run) == 2
    words = capsys.readouterr().err
    assert f"inside of {CELL}, which records its steps in" in words
    assert f"run.db, {said}" in words
    assert "take one of the two %%steadygrad away" in words
    assert Session.current is None


def test_a_cell_under_run_says_what_to_type(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("script.ipy").touch()
    plan = Plan("IPython", ("script.ipy",), as_module=True, out=str(tmp_path / "run.db"))
    monkeypatch.setattr(Session, "current", Session(plan))
    page: Any = Page()
    assert observe(page, "--out own.db", "6 * 7") == 42
    words = capsys.readouterr().err
    assert "under `steadygrad run`, which records its steps in" in words
    assert words.endswith("type: python -m IPython script.ipy\n")
