"""The order of the tests, what is made once for all workers, and scripts in forks."""

from __future__ import annotations

import fcntl
import gc
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .workbench import Forks, Workbench


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A worker that ends the run with a test of minutes leaves the other cores idle.

    Neighbours stay neighbours: what they share is made once a worker.
    """
    usual = float(config.getini("timeout"))
    items.sort(key=lambda item: _seconds_allowed(item) <= usual)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Take what the imports make out of all walks over live objects.

    Recovery and the observers search all objects, and many tests collect garbage: beside every
    framework at once, a walk takes half a second.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # triton complains at exit of what is never freed


def _seconds_allowed(item: pytest.Item) -> float:
    marker = item.get_closest_marker("timeout")
    return float(marker.args[0]) if marker and marker.args else 0.0


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], Any]], Any]:
    """Makes what is dear once for all workers: ``once(name, make)`` is what ``make(folder)`` gave.

    Two workers may share the tests of a file; the second waits for what the first makes.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, make: Callable[[Path], Any]) -> Any:
        folder, result = shared / f"once-{name}", shared / f"once-{name}.pickle"
        with open(shared / f"once-{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not result.exists():
                folder.mkdir(exist_ok=True)
                made = pickle.dumps(make(folder))
                result.write_bytes(made)
        return pickle.loads(result.read_bytes())

    return made


@pytest.fixture(scope="session")
def torch_forks() -> Iterator[Forks]:
    """Forks of a process that has torch loaded."""
    with Forks("torch", "steadygrad.launch.torch_script.observer") as forks:
        yield forks


@pytest.fixture
def forked(tmp_path: Path, torch_forks: Forks) -> Workbench:
    """A workbench for scripts of torch, whose loading takes four seconds a process."""
    return Workbench(tmp_path / "forked", torch_forks)
