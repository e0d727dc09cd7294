"""How many files a step passes on its way to the run file: each is one more to read and to call."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

import steadygrad
import steadygrad.torch as sg
from steadygrad.invisible import INVISIBLE
from steadygrad.kernels import native
from steadygrad.runlog.pump import Pump
from steadygrad.torch.internals.eager import eager

SRC = Path(steadygrad.__file__).parent

MOST_FILES = 15
"""Between `optimizer.step()` and the queue of the thread that writes; it only goes down."""


def files_to_the_queue(call):
    """Files of ours that run until the first item is queued, frames hidden from tracebacks too."""
    files, queued = set(), []

    def hear(frame, event, argument):
        if event != "call" or queued:
            return
        hidden = frame.f_code.co_filename == INVISIBLE
        path = Path(frame.f_globals["__file__"] if hidden else frame.f_code.co_filename)
        if path.is_relative_to(SRC):
            files.add(str(path.relative_to(SRC)))
        if frame.f_code is Pump.put.__code__:
            queued.append(frame.f_locals["item"])

    sys.setprofile(hear)
    try:
        call()
    finally:
        sys.setprofile(None)
    return sorted(files), queued


def test_a_clipped_and_recorded_step_passes_few_files(sgd, tmp_path):
    path = tmp_path / "run.db"
    with sg.attach(sgd.optimizer, clip="norm:0.01", model=sgd.model, run=path) as steady:
        for _ in range(29):  # at the 30th nothing beyond gradients is sampled
            sgd.step()
        sgd.model(torch.ones(2, 4)).sum().backward()
        files, queued = files_to_the_queue(sgd.optimizer.step)
        assert steady.last.action == "clip"
    assert queued[0].opened().record.step == 29
    assert len(files) <= MOST_FILES, files


def test_what_a_call_passes_is_counted_hidden_frames_too(monkeypatch):
    files, queued = files_to_the_queue(lambda: sg.measure([torch.ones(2)]))
    assert not queued
    assert {"torch/dropins/figures.py", "kernels/auto.py"} <= set(files)
    monkeypatch.setattr(native, "GATE", None)  # where C was not built, a hidden frame stands there
    passed = ["torch/internals/eager.py", "torch/internals/modes.py"]
    assert files_to_the_queue(eager(int)) == (passed, [])


def test_numpy_is_told_once_a_step_to_let_inf_pass(sgd, monkeypatch):
    contexts = []

    def entered(**kinds):
        contexts.append(kinds)
        return errstate(**kinds)

    errstate = np.errstate
    with sg.attach(sgd.optimizer, clip="zclip+tensor-norm:0.01", model=sgd.model):
        for _ in range(3):  # a policy with a memory, whose norms are compared tensor by tensor
            sgd.step()
        monkeypatch.setattr(np, "errstate", entered)
        sgd.step()
    assert contexts == [{"all": "ignore"}]
