"""The order of the tests: what may take longest begins first; and scripts that need no process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .workbench import Forks, Workbench


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A worker that ends the run with a test of minutes leaves the other cores idle.

    Neighbours stay neighbours: what they share is made once a worker.
    """
    usual = float(config.getini("timeout"))
    items.sort(key=lambda item: _seconds_allowed(item) <= usual)


def _seconds_allowed(item: pytest.Item) -> float:
    marker = item.get_closest_marker("timeout")
    return float(marker.args[0]) if marker and marker.args else 0.0


@pytest.fixture(scope="session")
def torch_forks() -> Iterator[Forks]:
    """Forks of a process that has torch loaded."""
    forks = Forks("torch", "steadygrad.launch.torch_script.observer")
    with forks.process:  # which closes its input, and so ends it
        yield forks


@pytest.fixture
def forked(tmp_path: Path, torch_forks: Forks) -> Workbench:
    """A workbench for scripts of torch, whose loading takes four seconds a process."""
    folder = tmp_path / "forked"
    folder.mkdir()
    return Workbench(folder, torch_forks)
