"""DeepSpeed on its CPU accelerator with gloo, ZeRO 0, 1 and 3, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import steadygrad

SCRIPT = """
import json, sys
import deepspeed, torch
import deepspeed.ops
# DeepSpeed compiles this optional kernel at first use; gloo serves without it
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
from steadygrad.integrations.deepspeed import observe


def train(stage, path):
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
    generator = torch.Generator().manual_seed(1)
    norms = []
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
    observer.close()
    return norms

folder = sys.argv[1]
norms = {stage: train(stage, f"{folder}/stage{stage}.db") for stage in (0, 1, 3)}
print("NORMS", json.dumps(norms))
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list]]:
    """A folder with one run file a stage, and the norms that the engine itself tells."""
    folder = tmp_path_factory.mktemp("deepspeed")
    script = folder / "train.py"
    script.write_text(SCRIPT)
    environment = {
        **os.environ,
        "DS_ACCELERATOR": "cpu",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(29600 + os.getpid() % 300),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(script), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("NORMS"))
    return folder, json.loads(line.removeprefix("NORMS"))


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_the_engines_clipping_is_recorded(stage: int, trained: tuple[Path, dict]) -> None:
    norms = trained[1][str(stage)]
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
