"""What holds for all rules: contract, pages, order, silence, the command line."""

from __future__ import annotations

import ast
import cProfile
import json
import pstats
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from steadygrad.cli.diagnose import command as diagnose_command
from steadygrad.cli.explain import command as explain_command
from steadygrad.errors import UsageError
from steadygrad.report import verdict
from steadygrad.rules import REGISTRY, SEVERITIES, Finding, diagnose, page
from steadygrad.runlog import Run, RunWriter, StepRecord, TensorInfo, open_run


@pytest.mark.parametrize("seed", range(8))
def test_healthy_runs_are_met_with_silence(make, seed):
    assert make(seed=seed).findings == []


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_too_few_steps_are_no_ground_for_a_verdict(make, steps):
    m = make(steps=steps)
    m.clip(0.1)
    (found,) = m.findings
    assert (found.id, found.severity) == ("SG000", "info")
    assert found.title == f"Nothing to judge: {NUMBERS[steps]} recorded."


NUMBERS = {
    0: "no optimizer step was", 1: "1 step was", 2: "2 steps were", 5: "5 steps were",
}  # fmt: skip


def test_a_fault_in_few_steps_is_said_all_the_same(make):
    m = make(steps=4)
    m.break_from(2)
    assert m.ids == ["SG101"]


@pytest.mark.parametrize("level", ["error", "warning"])
def test_a_check_that_saw_nothing_has_not_passed(tmp_path, level):
    path = tmp_path / "run.db"
    RunWriter(path).close()
    done = CliRunner().invoke(diagnose_command, [str(path), "--fail-on", level])
    assert done.exit_code == 3
    assert "Nothing to judge" in done.stdout
    plain = CliRunner().invoke(diagnose_command, [str(path), "--json"])
    assert plain.exit_code == 0
    assert [f["id"] for f in json.loads(plain.stdout)] == ["SG000"]


def test_the_gravest_comes_first(make):
    m = make()
    m.norms[30] *= 50
    m.break_from(60)
    found = m.findings
    assert [f.id for f in found] == ["SG101", "SG202"]
    order = [SEVERITIES.index(f.severity) for f in found]
    assert order == sorted(order)


def test_optimizers_are_judged_apart(make):
    calm, broken = make(), make(seed=1)
    broken.break_from(60)
    both = calm.steps * 2
    which = np.repeat([0, 1], calm.steps)
    tensors = [
        TensorInfo(f"{player}.{t.name}", t.shape, t.dtype, t.module, t.position, player)
        for player in (0, 1)
        for t in calm.tensors
    ]
    norms = np.full((both, len(tensors)), np.nan)
    nonfinite = np.zeros_like(norms)
    half = len(calm.tensors)
    norms[: calm.steps, :half], norms[calm.steps :, half:] = calm.norms, broken.norms
    nonfinite[calm.steps :, half:] = broken.nonfinite
    run = Run.from_arrays(
        steps={
            "norm": np.r_[calm.total, broken.total],
            "step": np.tile(np.arange(calm.steps), 2),
            "loss": np.r_[calm.loss, broken.loss],
            "nonfinite": nonfinite.sum(axis=1),
            "optimizer": which,
        },
        tensors=tensors,
        tensor_norms=norms,
        tensor_nonfinite=nonfinite,
        tensor_zeros=np.zeros_like(norms),
        tensor_max_abs=norms,
    )
    found = diagnose(run)
    assert [(f.id, f.optimizer, f.title[:12]) for f in found] == [("SG101", 1, "Optimizer 1:")]


def test_json_holds_everything_and_no_nan(make):
    m = make()
    m.norms[50:60] *= np.exp(np.arange(10))[:, None]
    m.break_from(60)
    text = json.dumps([f.to_dict() for f in m.findings], allow_nan=False)
    data = json.loads(text)[0]
    assert {"id", "title", "severity", "confidence", "evidence", "steps", "tensors"} <= set(data)
    assert {"causes", "fixes", "docs"} <= set(data)


@pytest.mark.parametrize("framework", ["torch", "keras", "tensorflow", "jax"])
def test_fixes_are_for_the_framework_of_the_run(make, framework):
    m = make()
    m.clip(0.1)
    m.info["framework"] = framework
    fix = m.findings[0].fixes[0]
    ast.parse(fix)
    assert f"steadygrad.{framework}" in fix


def test_fixes_are_for_the_framework_of_the_optimizer_where_a_script_has_two(make):
    m = make()
    m.clip(0.1)
    m.info["framework"] = "torch"
    m.info["optimizers"] = [{"class": "Adam", "index": 0, "framework": "jax"}]
    assert "steadygrad.jax" in m.findings[0].fixes[0]


def test_a_severity_must_be_known():
    with pytest.raises(ValueError, match="severity"):
        Finding("SG101", "x", "fatal", 1.0)


@pytest.mark.parametrize("rule", REGISTRY)
def test_every_rule_has_its_page(rule):
    text = page(rule)
    assert text.startswith(f"# {rule}: {REGISTRY[rule].title}\n")
    for heading in ("## Told from its neighbours", "## The evidence", "## The fix"):
        assert heading in text
    for framework in ("PyTorch:", "Keras and TensorFlow:", "JAX:"):
        assert framework in text
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        ast.parse(block)
    for other in re.findall(r"SG\d{3}", text):
        assert other in REGISTRY


def test_rules_supersede_only_rules():
    for rule in REGISTRY.values():
        assert set(rule.supersedes) <= set(REGISTRY) - {rule.id}


def test_an_unknown_rule_lists_the_known_ones():
    with pytest.raises(UsageError, match="SG101"):
        page("SG999")


@pytest.fixture
def broken_file(tmp_path):
    path = tmp_path / "run.db"
    with RunWriter(path) as writer:
        ids = writer.add_tensors([TensorInfo("w", (2, 2))])
        for step in range(30):
            bad = step >= 20
            norm = np.nan if bad else 1.0
            writer.write_step(
                StepRecord(step, norm=norm, nonfinite=4 * bad), ids, [norm], [1.0], [4 * bad], [0]
            )
    return str(path)


def test_diagnose_prints_json(broken_file):
    done = CliRunner().invoke(diagnose_command, [broken_file, "--json"])
    assert done.exit_code == 0
    assert [f["id"] for f in json.loads(done.stdout)] == ["SG101"]


@pytest.mark.parametrize(("level", "code"), [("error", 1), ("warning", 1)])
def test_diagnose_fails_on_demand(broken_file, level, code):
    done = CliRunner().invoke(diagnose_command, [broken_file, "--fail-on", level])
    assert done.exit_code == code
    assert "SG101" in done.stdout


def test_diagnose_fails_only_on_what_was_asked(tmp_path, make):
    m = make()
    m.clip(0.1)
    path = tmp_path / "run.db"
    with RunWriter(path) as writer:
        ids = writer.add_tensors(m.tensors)
        for row, step in enumerate(m.run.steps):
            record = StepRecord(
                int(step["step"]), norm=float(step["norm"]), threshold=0.1,
                coef=float(step["coef"]), action="clip", loss=float(step["loss"]),
            )  # fmt: skip
            zero = np.zeros(len(ids))
            writer.write_step(record, ids, m.norms[row], m.max_abs[row], zero, zero)
    run = str(path)
    assert CliRunner().invoke(diagnose_command, [run, "--fail-on", "error"]).exit_code == 0
    assert CliRunner().invoke(diagnose_command, [run, "--fail-on", "warning"]).exit_code == 1


def test_diagnose_of_what_is_no_run_file(tmp_path):
    for path in (tmp_path / "nothing.db", __file__):
        assert CliRunner().invoke(diagnose_command, [str(path)]).exit_code == 2


def test_explain_lists_rules_and_prints_pages():
    listed = CliRunner().invoke(explain_command, [])
    listed_ids = [line[:5] for line in listed.stdout.splitlines()]
    assert [each for each in listed_ids if each in REGISTRY] == list(REGISTRY)
    shown = CliRunner().invoke(explain_command, ["sg204"])
    assert shown.stdout == page("SG204").rstrip() + "\n"


def calls_to_judge(path: Path, optimizers: int) -> int:
    """How many calls a diagnosis takes of a run of so many optimizers."""
    with RunWriter(path) as out:
        for number in range(optimizers):
            ids = out.add_tensors([TensorInfo(f"{number}.w", (4, 4), optimizer=number)])
            for step in range(16):
                norm = np.full(1, 1.0 + step % 3)
                out.write_step(
                    StepRecord(step, norm=norm[0], loss=1 / (step + 1), optimizer=number),
                    *(ids, norm, norm, [0], [0.0]),
                )
                for name in ("weight_norm", "update_ratio"):
                    out.write_sample(name, step, ids, norm)
    run, profile = open_run(path), cProfile.Profile()
    found = profile.runcall(diagnose, run)
    assert verdict(run, found).level in ("ok", "warning")
    return pstats.Stats(profile).total_calls


def test_twice_the_optimizers_are_twice_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("runlog.run", "runlog.reader", "rules.evidence.tensors"):
        monkeypatch.setattr(f"steadygrad.{place}.KEPT_BYTES", 0)  # as if each were large
    few, many = (calls_to_judge(tmp_path / f"{n}.db", n) for n in (12, 24))
    assert many < 2.4 * few, (few, many)
