"""Observes code in the test's own process: torch is patched for one test and put back."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.amp.grad_scaler import GradScaler

from steadygrad.launch.plan import Plan
from steadygrad.launch.session import Session
from steadygrad.launch.torch_script.install import Patches, install
from steadygrad.runlog import Run, open_run
from steadygrad.torch.internals import scaler

CLIPS = ("clip_grad_norm_", "clip_grads_with_norm_", "clip_grad_value_")


class Observation:
    """A session whose script is the test."""

    def __init__(self, session: Session, patches: Patches) -> None:
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
def observe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Observation]]:
    made: list[Observation] = []
    hooks = sys.modules["torch.optim.optimizer"]._global_optimizer_pre_hooks
    before = dict(hooks)
    # set to what they are: undone after the test, whatever was patched in between
    monkeypatch.setattr(torch.autograd, "backward", torch.autograd.backward)
    for name in CLIPS:
        for module in (torch.nn.utils, torch.nn.utils.clip_grad):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, getattr(module, name))
    for name in ("scale", "unscale_", "step"):
        monkeypatch.setattr(GradScaler, name, getattr(GradScaler, name))

    monkeypatch.setattr(scaler, "_original", scaler._original)

    def start(**wishes: Any) -> Observation:
        session = Session(Plan("test.py", out=str(tmp_path / "run.db"), **wishes))
        patches = install(session)
        session.observers.append(patches)
        made.append(Observation(session, patches))
        return made[-1]

    yield start
    for observation in made:
        observation.session._conclude()
        if observation.patches._observer is not None:
            observation.patches._observer.abandon()
    for key in set(hooks) - set(before):
        del hooks[key]
