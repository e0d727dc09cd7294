"""Looking for the origin of a NaN on two ranks: no rank waits for the other."""

from __future__ import annotations


def test_the_rank_whose_batch_it_was_names_the_rows(two_ranks):
    first, second = two_ranks["origin ddp"]
    assert second == ["input", [2], ""]
    phase, rows, why = first
    assert (phase, rows) == ("unknown", [])
    assert "another rank has the origin" in why
    own, others = two_ranks["origins"][0]
    assert (own.get("rank"), own["phase"]) == (None, "unknown")
    assert (others["rank"], others["phase"], others["rows"]) == (1, "input", [2])


def test_sharded_weights_are_said_to_be_in_the_way(two_ranks):
    for phase, _, why in two_ranks["origin fsdp2"]:
        assert phase == "unknown"
        assert "replay runs on one" in why


def test_a_collective_in_the_forward_pass_ends_the_replay(two_ranks):
    for phase, _, why in two_ranks["origin talks"]:
        assert phase == "unknown"
        assert "talks to other ranks" in why
