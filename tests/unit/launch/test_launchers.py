"""Launchers of several processes, before `steadygrad run` and, by mistake, behind it."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from steadygrad.cli import Handover, group
from steadygrad.launch import session
from steadygrad.launch.plan import Plan


@pytest.mark.parametrize(
    ("typed", "behind"),
    [
        (
            "torchrun --nproc-per-node=2 train.py --lr 3",
            "torchrun --nproc-per-node=2 -m steadygrad run train.py --lr 3",
        ),
        (
            "--clip norm:1.0 -q accelerate launch --cpu train.py",
            "accelerate launch --cpu -m steadygrad run --clip norm:1.0 --quiet train.py",
        ),
        (
            "-m torch.distributed.run --nproc-per-node 2 -m package.train a.py",
            "python -m torch.distributed.run --nproc-per-node 2 -m steadygrad run -m package.train "
            "a.py",
        ),
        (
            "--log csv --log jsonl deepspeed --num_gpus 2 train.py",
            "deepspeed --num_gpus 2 --module steadygrad run --log csv --log jsonl train.py",
        ),
    ],
)
def test_a_launcher_in_place_of_the_script_is_told_what_to_type(typed: str, behind: str) -> None:
    done = CliRunner().invoke(group, ["run", *typed.split()])
    assert done.exit_code == 2
    assert done.stderr.endswith(f"steadygrad stands behind it: {behind}\n")


@pytest.mark.parametrize("local_rank", ["--local_rank=1", "--local-rank=1"])
def test_what_a_launcher_says_to_the_script_reaches_the_script(
    local_rank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "torchrun.py"  # a script of the user's, whatever it is called
    script.touch()
    plans: list[Plan] = []
    monkeypatch.setattr(session, "launch", plans.append)
    with pytest.raises(Handover) as handover:
        group.main([local_rank, "run", "-q", str(script), "x"], standalone_mode=False)
    handover.value.action()
    assert plans[0].arguments == (local_rank, "x")
