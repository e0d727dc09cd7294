"""One decision for all ranks: sharded norms are whole, and every rank computes the same bits."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch

import steadygrad.torch as sg

_spec = importlib.util.spec_from_file_location("ranks", Path(__file__).with_name("ranks.py"))
ranks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(ranks)


@pytest.mark.parametrize("ways", ["", " of many"])
@pytest.mark.parametrize("p", ranks.NORM_TYPES)
def test_the_norm_of_shards_is_the_norm_of_the_whole(two_ranks, p, ways):
    first, second = two_ranks["whole_norms" + ways]
    assert first == second  # to the bit
    found = first[ranks.NORM_TYPES.index(p)]
    assert found[0] == pytest.approx(sg.get_total_norm(ranks.gradients(), p).item(), rel=1e-14)
    expected = [torch.linalg.vector_norm(g.double(), p).item() for g in ranks.gradients()]
    assert found[1:] == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("ways", ["", " of many"])
def test_pending_sums_are_carried_out_before_they_are_measured(two_ranks, ways):
    for norm, *left in two_ranks["partial_sums" + ways]:
        assert norm == 5.0
        assert left == pytest.approx([0.6, 0.8, 3.0, 3.5])  # the parts would give 2.5 for 3.5


@pytest.mark.parametrize("ways", ["", " of many"])
def test_counts_are_summed_over_the_shards(two_ranks, ways):
    for norm, largest, nonfinite, zeros in two_ranks["broken_shards" + ways]:
        assert math.isnan(norm)
        assert (largest, nonfinite, zeros) == (1.0, 2, 1)


def train_alone(clip):
    model = ranks.net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    steady = sg.attach(optimizer, clip=clip)
    records = []
    for step in range(3):
        x, y = ranks.batch()
        optimizer.zero_grad()
        (((model(x) - y) ** 2).mean() * (math.nan if step == 1 else 1.0)).backward()
        optimizer.step()
        records.append(steady.last)
    return records, [p.detach().flatten().tolist() for p in model.parameters()]


@pytest.mark.parametrize(
    ("wrap", "clip"), [(wrap, clip) for wrap, clips in ranks.CLIPS.items() for clip in clips]
)
def test_every_rank_takes_the_decision_that_one_process_would_take(two_ranks, wrap, clip):
    first, second = two_ranks[f"{wrap} {clip}"]
    assert repr(first) == repr(second)
    alone, weights = train_alone(clip)
    assert [action for _, _, action, _ in first["records"]] == ["clip", "skip", "clip"]
    for step in (0, 2):
        norm, coef, _, cosine = first["records"][step]
        assert norm == pytest.approx(alone[step].norm, rel=1e-5)
        assert coef == pytest.approx(alone[step].coef, rel=1e-4)
        assert cosine == pytest.approx(alone[step].cosine, rel=1e-4)
    for ours, expected in zip(first["weights"], weights, strict=True):
        assert ours == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    "case", ["scaled ddp", "scaled fsdp2", "in_backward fsdp2", "compiled fsdp2"]
)
def test_norms_and_weights_are_those_of_one_process(two_ranks, case):
    first, second = two_ranks[case]
    assert repr(first) == repr(second)
    alone = json.loads(json.dumps(getattr(ranks, case.split()[0])(0, lambda model: model, 1)))
    assert "clip" in str(alone["records"])
    for (norms, facts), (expected, facts_alone) in zip(
        first["records"], alone["records"], strict=True
    ):
        assert facts == facts_alone
        assert norms == pytest.approx(expected, rel=1e-5, nan_ok=True)
    for ours, expected in zip(first["weights"], alone["weights"], strict=True):
        # sums of 8 samples in another order, through 3 steps of gradients below a tenth
        assert ours == pytest.approx(expected, rel=0, abs=8 * 10 * 3 * 2**-24)


@pytest.mark.parametrize("case", ["own scaler", "shared scaler"])
def test_ranks_with_parameters_and_a_scaler_of_their_own_skip_together(two_ranks, case):
    first, second = two_ranks[case]
    for ours, theirs in zip(first, second, strict=True):
        norms = ours[0], theirs[0]
        assert norms == pytest.approx([math.sqrt(ours[1] + theirs[1])] * 2, rel=1e-6, nan_ok=True)
        assert ours[2:4] == theirs[2:4]
    assert [record[2:4] for record in first] == [["clip", False], ["skip", True], ["clip", False]]
    scales = [[record[4] for record in rank] for rank in (first, second)]
    backed_off = [1024.0, 512.0, 512.0]
    assert scales == [backed_off if case == "shared scaler" else [1024.0] * 3, backed_off]


def test_an_optimizer_that_steps_before_ddp_has_averaged_is_told_so(two_ranks):
    first, _ = two_ranks["in_backward ddp"]
    assert "step 0" in first["told"][0]
    assert "call step() after backward()" in first["told"][0]


def test_one_collective_a_step_where_tensors_are_sharded_and_none_where_not(two_ranks):
    assert [rank["collectives"] for rank in two_ranks["fsdp2 norm:0.1"]] == [3, 3]
    assert [rank["collectives"] for rank in two_ranks["ddp norm:0.1"]] == [0, 0]


@pytest.mark.parametrize(("wrap", "nature"), [("ddp", "persistent"), ("fsdp2", "unknown")])
def test_all_ranks_skip_and_roll_back_together(two_ranks, wrap, nature):
    first, second = two_ranks[f"recovery {wrap}"]
    assert first == second
    assert first["acts"] == [
        f"step 5: loss not finite, {nature}: skip",
        "step 8: weights not finite, persistent: rollback to step 6",
    ]
    assert all(math.isfinite(each) for weight in first["weights"] for each in weight)


@pytest.mark.parametrize("wrap", ["ddp", "fsdp2"])
def test_ranks_go_on_from_the_newest_snapshot_that_is_whole_on_all_of_them(two_ranks, wrap):
    first, second = two_ranks[f"resumed {wrap}"]
    assert first == second
    assert len(first["files"]) > 1
    assert first["first"] == int(first["files"][-2][5:14])
    assert first["alike"]


def test_ranks_fall_back_together_where_earlier_weights_do_better(two_ranks):
    first, second = two_ranks["fallen"]
    assert first == second
    assert "sustained divergence: rollback" in first[0]


def test_ranks_that_clip_by_different_norms_are_told_without_a_collective(two_ranks):
    first, second = two_ranks["experts"]
    assert second == []
    (said,) = first
    assert "rank 0 has a gradient norm of" in said
    assert "process_group={'experts.*': group}" in said


def test_rank_0_records_what_every_rank_saw(two_ranks):
    rows, _ = two_ranks["rows"]
    steps = sorted(pair for row in rows for pair in zip(row["step"], row["rank"], strict=True))
    assert steps == [(step, rank) for step in range(3) for rank in (0, 1)]
    assert two_ranks["ends"][0] == ["rank 1: ValueError"]


def test_the_rank_that_brings_nan_and_what_a_slow_one_is_busy_with_are_on_record(two_ranks):
    (titles, busy), _ = two_ranks["faulty"]
    assert [title.split(":")[0] for title in titles] == [
        "Rank 1 alone brings NaN or inf into step 3"
    ]
    assert len(busy) == 6
    assert busy[1] >= ranks.PAUSE  # what it slept is its own, at all steps but perhaps the first
    assert two_ranks["sound"][0][0] == []


def test_the_fixes_for_ranks_help_once_they_are_typed_in(two_ranks):
    (broken, mended), _ = two_ranks["mended nan"]
    assert broken[0][0] == ["SG802", "error"]
    assert not broken[1]
    assert [each for each in mended[0] if each[1] == "error"] == []
    assert mended[1]
    (before, after), _ = two_ranks["mended straggler"]
    assert [title.split(":")[0] for title in before] == ["Rank 1 holds the others up"]
    assert after == []
