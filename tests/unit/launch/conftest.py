"""Observes code in the test's own process: torch is patched for one test and put back."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from steadygrad.launch.plan import Plan
from steadygrad.launch.session import Session
from steadygrad.launch.torch_script.install import TorchPatches, install
from steadygrad.launch.undoing import undo_all
from steadygrad.runlog import Run, open_run


class Observation:
    """A session whose script is the test."""

    def __init__(self, session: Session, patches: TorchPatches) -> None:
        self.session, self.patches = session, patches

    def run(self) -> Run:
        """End the observation and open what it wrote."""
        self.session._conclude()
        assert self.session.troubles == []
        return open_run(self.session.path)

    def calls(self) -> list[dict[str, Any]]:
        """The script's clip calls, as the run file has them."""
        return [event.data for event in self.run().events if event.kind == "script_clip"]


@pytest.fixture
def observe(tmp_path: Path) -> Iterator[Callable[..., Observation]]:
    made: list[Observation] = []

    def start(**wishes: Any) -> Observation:
        session = Session(Plan("test.py", out=str(tmp_path / "run.db"), **wishes))
        session.frameworks.append("torch")
        patches = install(session)
        session.observers.append(patches)
        made.append(Observation(session, patches))
        return made[-1]

    gc.collect()  # every new optimizer looks through the living objects
    yield start
    for observation in made:
        observation.session._conclude()
    undo_all()
