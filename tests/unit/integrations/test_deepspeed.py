"""DeepSpeed on its CPU accelerator with gloo: two processes, ZeRO 0 to 3."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import steadygrad
from steadygrad.integrations.deepspeed import observe

SCRIPT = """
import functools, json, os, sys
import deepspeed, torch
import deepspeed.ops
# DeepSpeed compiles this optional kernel at first use; gloo serves without it
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
from steadygrad.integrations.deepspeed import observe

sys.path.append(sys.argv[1])
from forks import all_end


def train(rank, stage, path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 0.5,
        "zero_optimization": {"stage": stage},
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": stage > 0},
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    observer = observe(engine, run=path)
    generator = torch.Generator().manual_seed(1 + rank)  # each rank has batches of its own
    norms, seen = [], []
    for _ in range(6):
        x = torch.randn(4, 8, generator=generator)
        x = x.bfloat16() if stage else x
        loss = (engine(x).float() - 5 * x.float().sum(1, keepdim=True)).square().mean()
        engine.backward(loss)
        last = engine.is_gradient_accumulation_boundary()
        engine.step()
        if last:
            norm = engine.get_global_grad_norm()
            norms.append(None if norm is None else float(norm))
            seen.append([observer.last.norm, observer.last.coef, observer.last.action])
    observer.close()
    return {"norms": norms, "seen": seen}

def be(rank):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    told = {stage: train(rank, stage, f"stage{stage}.db") for stage in range(4)}
    with open(f"{rank}.json", "w") as file:
        json.dump(told, file)
    torch.distributed.destroy_process_group()

all_end([functools.partial(be, rank) for rank in range(2)])
"""


def run_ranks(folder: Path) -> list[dict[str, dict[str, list]]]:
    """Train with two processes; what each rank told, by stage."""
    script = folder / "train.py"
    script.write_text(SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    done = subprocess.run(
        [sys.executable, str(script), str(Path(__file__).parents[2])],
        cwd=folder,
        env={**os.environ, **place, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def trained(once: Any) -> tuple[Path, list[dict[str, dict]]]:
    """A folder with one run file a stage, and what each of two ranks told, by stage."""
    return once("deepspeed", lambda folder: (folder, run_ranks(folder)))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_engines_clipping_is_recorded(stage: int, trained: tuple[Path, list]) -> None:
    norms = trained[1][0][str(stage)]["norms"]
    run = steadygrad.open_run(trained[0] / f"stage{stage}.db")
    assert len(run.steps) == 3  # six micro-batches, two a step
    assert (run.steps.threshold == 0.5).all()
    assert (run.steps.action == "clip").all()
    assert np.allclose(run.steps.coef, 0.5 / (run.steps.norm + 1e-6), rtol=1e-12)
    assert np.isfinite(run.steps.loss).all()
    assert len(run.tensors) == 4
    if stage == 0:
        assert norms == [None] * 3  # the engine keeps no norm here; ours is measured
        joined = np.sqrt(np.sum(run.tensor_norms**2, axis=1))
        assert np.allclose(joined, run.steps.norm, rtol=0.002)  # as the file keeps them
    else:
        assert list(run.steps.norm) == norms
        assert np.isnan(run.tensor_norms).all()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_take_one_decision_from_the_global_norm(
    stage: int, trained: tuple[Path, list]
) -> None:
    first, second = (rank[str(stage)]["seen"] for rank in trained[1])
    assert first == second  # though each rank has batches of its own
    run = steadygrad.open_run(trained[0] / f"stage{stage}.db")  # written by rank 0 alone
    assert run.steps.norm.tolist() == [norm for norm, _, _ in first]


class Halving:
    """An engine whose steps all overflow."""

    global_rank = 0

    def __init__(self) -> None:
        self.module = torch.nn.Linear(2, 1)
        self.optimizer = SimpleNamespace(loss_scale=1024.0)

    def step(self) -> None:
        self.optimizer.loss_scale /= 2

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def __getattr__(self, name: str) -> Any:
        told = {"get_global_grad_norm": -1, "was_step_applied": False, "get_lr": [0.1]}
        told |= {"is_gradient_accumulation_boundary": True, "gradient_accumulation_steps": 1}
        return lambda: told.get(name, 0)


def test_the_loss_scale_on_record_is_the_one_before_the_step(tmp_path: Path) -> None:
    engine: Any = Halving()
    observer = observe(engine, run=tmp_path / "run.db")
    for _ in range(2):
        engine.backward(engine.module(torch.ones(1, 2)).sum())
        engine.step()
    observer.close()
    steps = steadygrad.open_run(tmp_path / "run.db").steps
    assert steps.action.tolist() == ["skip"] * 2
    assert steps.loss_scale.tolist() == [1024.0, 512.0]


class FP16_UnfusedOptimizer(SimpleNamespace):
    """Keeps the norm with its scale."""


class Scaled(Halving):
    """An engine at ZeRO stage 0 that scales losses, and takes the norm of what it has then."""

    def __init__(self, optimizer: Any, norm_scale: float, scaler: Any = None) -> None:
        super().__init__()
        self.optimizer, self.norm_scale = optimizer, norm_scale
        self.torch_autocast_z0_gradscaler = scaler

    def backward(self, loss: torch.Tensor) -> None:
        (loss * 1024.0).backward()

    def get_global_grad_norm(self) -> float | None:
        return self.norm_scale * 5.0 or None

    def was_step_applied(self) -> bool:
        return True

    def step(self) -> None:
        self.module.zero_grad()


@pytest.mark.parametrize(
    "engine",
    [
        Scaled(SimpleNamespace(loss_scale=1024.0), 1.0),
        Scaled(FP16_UnfusedOptimizer(cur_scale=1024.0), 1024.0),
        Scaled(
            torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1),
            0.0,
            torch.amp.GradScaler("cpu", init_scale=1024.0),
        ),
    ],
)
def test_norms_on_record_are_without_the_loss_scale(engine: Any, tmp_path: Path) -> None:
    observer = observe(engine, run=tmp_path / "run.db")
    engine.backward(engine.module(torch.tensor([[math.sqrt(8.0), 4.0]])).sum())
    engine.step()
    observer.close()
    run = steadygrad.open_run(tmp_path / "run.db")
    assert run.steps.norm.tolist() == pytest.approx([5.0], rel=1e-6)
    assert run.steps.loss_scale.tolist() == [1024.0]
    assert run.tensor_norms[0].tolist() == pytest.approx([math.sqrt(24.0), 1.0], rel=2e-3)
