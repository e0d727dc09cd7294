"""Seeded mistakes are seen, sound scripts are not accused, and fixes take the mistake away."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from steadygrad.lint import CHECKS, lint_text, selected
from steadygrad.lint.rewriting import apply

ROOT = Path(__file__).parents[3]
SOUND = sorted(Path(__file__).with_name("sound").glob("*.py"))
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

sys.path.append(str(ROOT / "corpus"))

import mutations  # noqa: E402


def ids(text: str) -> list[str]:
    return [d.id for d in lint_text(text, CHECKS.values())]


def parses(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def mutants() -> list[tuple[str, str, str]]:
    """(name, id, text) of every operator on every sound script that it applies to."""
    made = []
    for path in (*SOUND, *EXAMPLES):
        text = path.read_text()
        for number, (check, operator) in enumerate(mutations.OPERATORS):
            mutant = operator(text)
            if mutant is not None and parses(mutant):
                made.append((f"{check}-{number}-{path.stem}", check, mutant))
    return made


MUTANTS = mutants()


@pytest.mark.parametrize("path", SOUND, ids=lambda p: p.stem)
def test_a_sound_script_is_not_accused(path: Path) -> None:
    assert ids(path.read_text()) == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_is_not_accused(path: Path) -> None:
    assert [d for d in lint_text(path.read_text(), CHECKS.values()) if d.severity != "info"] == []


def test_every_check_has_a_mistake_of_its_own() -> None:
    assert {check for _, check, _ in MUTANTS} == set(CHECKS)


@pytest.mark.parametrize(("check", "text"), [m[1:] for m in MUTANTS], ids=[m[0] for m in MUTANTS])
def test_a_seeded_mistake_is_seen(check: str, text: str) -> None:
    assert check in ids(text)


FIXABLE = [m for m in MUTANTS if any(d.fix for d in lint_text(m[2], selected([m[1]])))]


@pytest.mark.parametrize(("check", "text"), [m[1:] for m in FIXABLE], ids=[m[0] for m in FIXABLE])
def test_a_fix_takes_the_mistake_away(check: str, text: str) -> None:
    for _ in range(5):
        fixes = [d.fix for d in lint_text(text, selected([check])) if d.fix]
        if not fixes:
            break
        text, _ = apply(text, fixes[:1])
        ast.parse(text)
    assert ids(text) == []


def test_every_check_that_says_so_mends_something() -> None:
    assert {m[1] for m in FIXABLE} == {c.id for c in CHECKS.values() if c.fixable}
