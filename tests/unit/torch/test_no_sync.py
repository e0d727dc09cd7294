"""On a GPU, torch itself raises where the host waits for the device (its sync debug mode).

`test_device.py` counts the host's reads on CPU stand-ins, for machines without a GPU.
"""

from __future__ import annotations

import contextlib

import pytest
import torch

import steadygrad.torch as sg

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

ON_DEVICE = [
    (torch.optim.SGD, {"momentum": 0.9}, {"on_nonfinite": "propagate"}),
    (torch.optim.AdamW, {"fused": True}, {"on_nonfinite": "skip"}),
]


@contextlib.contextmanager
def no_synchronisation():
    """An error for every operation that makes the host wait."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def parameters():
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(n, device="cuda")) for n in (1, 1000, 70_001)]
    for parameter in params:
        parameter.grad = torch.randn_like(parameter)
    return params


def test_the_mode_notices_a_read():
    value = torch.ones((), device="cuda")
    with no_synchronisation(), pytest.raises(RuntimeError, match="synchroniz"):
        value.item()


@pytest.mark.parametrize("max_norm", [1e9, 1e-3])
def test_the_drop_in_never_waits(max_norm):
    params = parameters()
    sg.clip_grad_norm_(params, max_norm)  # compiles, and sends the table of pointers up
    with no_synchronisation():
        norm = sg.clip_grad_norm_(params, max_norm)
    assert norm.item() > 0


@pytest.mark.parametrize("clip", ["norm:1.0", "autoclip:10", "zclip", "adagc", "auto"])
@pytest.mark.parametrize(("kind", "settings", "guard"), ON_DEVICE)
def test_a_recorded_step_never_waits(kind, settings, guard, clip, tmp_path):
    params = parameters()
    optimizer = kind(params, lr=1e-3, **settings)
    handle = sg.attach(optimizer, clip=clip, run=tmp_path / "run.db", **guard)
    for _ in range(3):  # its state, the kernels, and a policy's first steps
        optimizer.step()
    with no_synchronisation():
        for _ in range(20):
            optimizer.step()
    assert handle.last.step == 22
    handle.detach()
