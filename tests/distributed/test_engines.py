"""Every engine x policy, on four ranks, against float64 NumPy and against one process."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch

import steadygrad.torch as sg

pytestmark = pytest.mark.timeout(
    900
)  # four processes start and run every engine in the first set-up

_spec = importlib.util.spec_from_file_location("engines", Path(__file__).with_name("engines.py"))
engines = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = engines  # dataclasses look their module up
_spec.loader.exec_module(engines)

WHOLE = (
    *("ddp", "ddp, static graph, checkpointed", "ddp, no_sync", "ddp, PowerSGD hook"),
    *("fsdp2", "fsdp2 offload", "fsdp2, no_sync, checkpointed", "hsdp", "tp", "sequence parallel"),
    *("fsdp2 x tp", "fsdp2 x sequence parallel", "hsdp x tp", "hsdp x tp, 2 x 2 x 1"),
    *("fsdp2, ignored parameters", "zero", "fsdp1"),
)
"""Engines that end with whole float32 weights of `Net`."""
APART = ("pipeline", "pipeline found", "pipeline x fsdp2", "experts")
"""Engines whose ranks hold other tensors each."""
COLLECTIVES = {name: 0 for name in engines.CLIPS if name.startswith(("ddp", "zero"))}
COLLECTIVES["pipeline x fsdp2"] = 2  # its meshes do not nest
PRECISION = {
    "ddp bfloat16": "bfloat16",
    "fsdp2 bfloat16": "bfloat16",
    "fsdp2 mixed": "bfloat16 parameters, float32 reduction",
}
CASES = [(name, clip) for name, clips in engines.CLIPS.items() for clip in clips]


def table():
    """Every engine x policy, as docs/scale.md has it."""
    heads = ("engine", *(f"`{clip}`" for clip in engines.EVERY), "precision", "collectives")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, clips in engines.CLIPS.items():
        refused = name.startswith("fsdp1")
        cells = [
            ""
            if clip not in clips
            else "refused"
            if refused and clip == engines.ELEMENTWISE
            else "✓"
            for clip in engines.EVERY
        ]
        rest = PRECISION.get(name, "float32"), str(COLLECTIVES.get(name, 1))
        lines.append(f"| {' | '.join((name, *cells, *rest))} |")
    return "\n".join(lines)


def test_the_table_of_the_docs_is_what_is_tested():
    page = Path(__file__).parents[2] / "docs" / "scale.md"
    assert table() in page.read_text(encoding="utf-8"), table()


@pytest.mark.parametrize(("name", "clip"), CASES)
def test_norm_and_decision_are_those_of_the_whole_on_every_rank(four_ranks, name, clip):
    ranks = four_ranks[f"{name}|{clip}"]
    if name.startswith("fsdp1") and clip == engines.ELEMENTWISE:
        assert all("fully_shard" in rank["refused"] for rank in ranks)
        return
    first = ranks[0]
    for rank in ranks:
        for ours, theirs, expected in zip(
            rank["records"], first["records"], rank["oracle"], strict=True
        ):
            assert ours[0] == pytest.approx(expected, rel=1e-6, nan_ok=True)
            assert repr(ours[0]) == repr(theirs[0])  # to the bit
    assert [action for _, _, action, _ in first["records"]] == ["clip", "skip"]
    if not (
        name in APART and clip in (engines.PER_TENSOR, engines.ELEMENTWISE)
    ):  # there each rank has coefficients of its own
        assert all(repr(rank["records"]) == repr(first["records"]) for rank in ranks)
        assert all(rank["state"] == first["state"] for rank in ranks)
    if clip != engines.ELEMENTWISE:
        calls = [count for _, _, _, count in first["records"]]
        assert calls == [COLLECTIVES.get(name, 1)] * engines.STEPS


@pytest.mark.parametrize("name", engines.MANY)
def test_ranks_too_many_to_gather_from_come_to_the_same(four_ranks, name):
    few, many = four_ranks[f"{name}|{engines.NORM}"], four_ranks[f"{name}|many"]
    for one, other in zip(few, many, strict=True):
        assert all(repr(rank["records"]) == repr(many[0]["records"]) for rank in many)
        for ours, theirs in zip(one["weights"], other["weights"], strict=True):
            assert ours == pytest.approx(theirs, rel=0, abs=2**-22)
        for ours, theirs in zip(one["records"], other["records"], strict=True):
            assert theirs[0] == pytest.approx(ours[0], rel=1e-14, nan_ok=True)
            assert (ours[2], theirs[3]) == (theirs[2], 0)  # the same decision, no gather


def train_alone(clip):
    model = engines.net()
    optimizer = engines.make_optimizer(model.parameters())
    with sg.attach(optimizer, clip=clip, model=model):
        for step in range(engines.STEPS):
            optimizer.zero_grad()
            broken = step == engines.BROKEN
            engines.loss_of(model, *engines.data(step), broken).backward()
            optimizer.step()
    return [p.detach().flatten() for p in model.parameters()]


@pytest.mark.parametrize("clip", engines.EVERY)
def test_weights_are_those_of_one_process(four_ranks, clip):
    alone = train_alone(clip)
    assert not torch.equal(alone[0], next(engines.net().parameters()).flatten())
    for name in WHOLE:
        refused = name == "fsdp1" and clip == engines.ELEMENTWISE
        if refused or clip not in engines.CLIPS[name]:
            continue
        for rank in four_ranks[f"{name}|{clip}"]:
            for ours, expected in zip(rank["weights"], alone, strict=True):
                # sums of 8 samples in another order: 8 roundings of 2**-24 each, in gradients
                # whose parts cancel to a tenth, through 2 steps of a rate under 1
                largest = float(expected.abs().max())
                assert torch.tensor(ours).isfinite().all()
                assert torch.tensor(ours) == pytest.approx(
                    expected, rel=0, abs=8 * 10 * 2 * 2**-24 * max(1.0, largest)
                ), name


def test_adaptive_state_saved_by_four_ranks_goes_on_on_two(four_ranks):
    for four, two in four_ranks["resharded"]:
        assert (four[0], two[0]) == (6, 6)
        assert four[1]["count"] == 6
        for ours, theirs in zip(two[1]["gamma"], four[1]["gamma"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)
        for ours, theirs in zip(two[2], four[2], strict=True):
            assert ours == pytest.approx(theirs, rel=0, abs=8 * 10 * 6 * 2**-24)


def test_what_was_broken_on_one_rank_was_not_finite_for_all(four_ranks):
    for case, ranks in four_ranks.items():
        for rank in ranks:
            if case != "resharded" and "refused" not in rank:
                assert math.isnan(rank["records"][engines.BROKEN][0]), case
