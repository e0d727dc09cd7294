"""The last words, from a run file and a session, without a process."""

from __future__ import annotations

from pathlib import Path

import pytest

from steadygrad import calibrate, diagnose, open_run
from steadygrad.launch.plan import Plan
from steadygrad.launch.session import Session
from steadygrad.launch.verdict import last_words
from steadygrad.runlog import RunWriter, StepRecord, TensorInfo, thinning

NAN = float("nan")


def session_of(
    folder: Path,
    norms: list[float],
    wall: float = 10.5,
    overhead: float = 0.5,
    gain: float = 1.0,
) -> Session:
    """A session that has recorded these norms, and losses from 1 + ``gain`` down to 1."""
    plan = Plan("train.py", ("--hf-token", "abc", "a b"), out=str(folder / "run.db"))
    session = Session(plan)
    session.path = plan.out
    info = {"overhead_seconds": overhead, "wall_seconds": wall}
    with RunWriter(session.path, info=info) as writer:
        ids = writer.add_tensors([TensorInfo("w", (2,))])
        for step, norm in enumerate(norms):
            bad = int(norm != norm)
            record = StepRecord(step, norm=norm, loss=1.0 + gain / (step + 1), nonfinite=bad)
            writer.write_step(record, ids, [norm], [norm], [bad], [0])
    return session


@pytest.fixture
def steady_norms() -> list[float]:
    return [1.0 + 0.1 * (step % 7) for step in range(64)]


def test_a_healthy_run_gets_a_verdict_a_threshold_and_the_next_command(
    tmp_path: Path, steady_norms: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = last_words(session_of(tmp_path, steady_norms)).splitlines()
    assert lines[0].startswith("steadygrad: Steady over 64 steps")
    assert any(line.startswith("  Threshold, as insurance: ") for line in lines)
    assert "  Observing cost 5.0 % of the script's 10.0 s." in lines
    assert lines[-1] == "Next: steadygrad report run.db"


def test_a_loss_that_ends_where_it_began_is_not_said_to_rise(
    tmp_path: Path, steady_norms: list[float]
) -> None:
    words = last_words(session_of(tmp_path, steady_norms, gain=-1e-5))
    assert "but the loss ended where it began, at 1." in " ".join(words.split())


def test_the_cost_beside_a_very_short_training_is_no_share(
    tmp_path: Path, steady_norms: list[float]
) -> None:
    lines = last_words(session_of(tmp_path, steady_norms, wall=0.53)).splitlines()
    assert "  Observing took 500 ms beside the script's own 30 ms." in lines


def test_a_cost_that_cannot_be_known_is_not_told(tmp_path: Path, steady_norms: list[float]) -> None:
    words = last_words(session_of(tmp_path, steady_norms, overhead=NAN))
    assert "What observing cost is not known" in words
    assert "Observing" not in words


@pytest.mark.parametrize(
    ("imported", "framework", "library"),
    [(["jax"], "jax", "jax"), (["torch", "jax"], "jax", "jax"), (["torch"], "torch", "torch"),
     (["jax", "tensorflow", "keras"], "keras", "keras"),
     (["tensorflow"], "tensorflow", "keras")],
)  # fmt: skip
def test_a_run_without_a_step_is_told_of_its_own_library(
    tmp_path: Path, imported: list[str], framework: str, library: str
) -> None:
    session = Session(Plan("train.py", (), out=str(tmp_path / "run.db")))
    session.frameworks = imported
    session.writer()  # as where a step was traced, and never taken
    session.finish()
    run = open_run(session.path)
    assert run.info["framework"] == framework
    (found,) = diagnose(run)
    assert f"import steadygrad.{library} as sg" in found.fixes[0]


def test_spikes_are_named_with_a_command_that_hides_secrets(
    tmp_path: Path, steady_norms: list[float]
) -> None:
    for step in (20, 41):
        steady_norms[step] = 500.0
    words = last_words(session_of(tmp_path, steady_norms))
    assert "SG202" in words
    again = next(line for line in words.splitlines() if line.strip().startswith("try: "))
    assert again.split("--clip ")[1].startswith("norm:")
    assert again.endswith("train.py ...  # and its arguments, as before")
    assert "abc" not in words


def test_each_optimizer_has_a_threshold_of_its_own_and_one_clip_follows_all(
    tmp_path: Path, steady_norms: list[float]
) -> None:
    steady_norms[41] = 500.0
    session = session_of(tmp_path, [])
    session.path = str(tmp_path / "three.db")
    with RunWriter(session.path) as writer:
        for optimizer, size in enumerate((1.0, 100.0, 1e4)):
            infos = [TensorInfo("w", (2,), optimizer=optimizer)]
            ids = writer.add_tensors(infos)
            for step, norm in enumerate(size * n for n in steady_norms):
                record = StepRecord(step, norm=norm, optimizer=optimizer)
                writer.write_step(record, ids, [norm], [norm], [0], [0])
    words = last_words(session)
    values = [calibrate(session.path, optimizer=number).threshold for number in range(3)]
    assert values[2] > 10 * values[1] > 100 * values[0]
    for number, value in enumerate(values):
        assert f"optimizer {number}: Recommended threshold: {value:g}." in words
    assert "try: steadygrad run --clip auto" in words


def test_a_finding_that_is_the_verdict_is_not_said_twice(
    tmp_path: Path, steady_norms: list[float]
) -> None:
    lines = last_words(session_of(tmp_path, [*steady_norms, NAN, NAN])).splitlines()
    verdict = " ".join(lines[0].split()[1:6])
    assert sum(verdict in line for line in lines) == 1
    assert any(line.strip().split()[:2] == ["SG101", "error"] for line in lines)


def test_what_went_wrong_on_our_side_is_said(tmp_path: Path, steady_norms: list[float]) -> None:
    session = session_of(tmp_path, steady_norms)
    session.trouble("part of the run was not observed", ValueError("x"))
    session.trouble("part of the run was not observed", ValueError("x"))
    assert last_words(session).count("by a fault of ours: ValueError: x") == 1


@pytest.mark.parametrize(
    ("frameworks", "expected"),
    [
        ([], "imported neither"),
        (["torch"], "started by subprocess"),
        (["jax"], "jax.record("),
        (["jax", "torch", "keras"], "nor does a model without trainable weights"),
        (["tensorflow", "jax", "keras"], "nor does a model without trainable weights"),
    ],
)
def test_no_steps_are_never_called_healthy(
    tmp_path: Path, frameworks: list[str], expected: str
) -> None:
    session = Session(Plan("train.py", out=str(tmp_path / "run.db")))
    session.frameworks = frameworks
    words = " ".join(last_words(session).split())
    assert words.startswith("steadygrad: 0 steps seen")
    assert expected in words
    assert "Steady" not in words
    assert "Next:" not in words


def test_a_script_that_an_error_ended_before_it_trained_is_told_so(tmp_path: Path) -> None:
    session = Session(Plan("train.py", out=str(tmp_path / "run.db")))
    session.frameworks, session.exit = ["torch"], "ModuleNotFoundError"
    words = " ".join(last_words(session).split())
    assert words.startswith("steadygrad: 0 steps seen")
    assert "ModuleNotFoundError ended the script before a backward pass or a step" in words
    assert "subprocess" not in words


def test_a_clip_that_met_no_step_is_named(tmp_path: Path) -> None:
    session = Session(Plan("train.py", out=str(tmp_path / "run.db"), clip="norm:1.0"))
    words = " ".join(last_words(session).split())
    assert words.startswith("steadygrad: 0 steps seen, so --clip norm:1.0 has clipped nothing")


def test_of_a_long_run_some_steps_are_read_and_that_is_said(
    tmp_path: Path, steady_norms: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thinning, "LONG", 50)
    monkeypatch.setattr(thinning, "END", 20)
    monkeypatch.setattr(thinning, "STRETCHES", 2)
    monkeypatch.setattr(thinning, "STRETCH", 8)
    norms = [*steady_norms, float("nan"), *steady_norms]
    said = last_words(session_of(tmp_path, norms))
    assert f"The run has {len(norms)} steps." in " ".join(said.split())
    assert "SG101" in said
    assert "All are read by: steadygrad diagnose" in " ".join(said.split())
