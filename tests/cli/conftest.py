"""Runs a script twice, by plain Python and through `steadygrad run`, as real processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ..workbench import Process, Workbench


@pytest.fixture(scope="session")
def workbench() -> type[Workbench]:
    """For fixtures that outlive a test: makes a workbench of a folder."""
    return Workbench


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


@pytest.fixture
def same() -> Callable[[tuple[Process, Process]], Process]:
    """Asserts that two processes did the same for the outside; returns the first."""

    def compare(pair: tuple[Process, Process]) -> Process:
        plain, observed = pair
        assert observed.stdout == plain.stdout
        assert observed.stderr == plain.stderr
        assert observed.returncode == plain.returncode
        return plain

    return compare
