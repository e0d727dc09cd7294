"""The reference shows what is for users: a page written by hand tells of it too."""

from __future__ import annotations

import ast
import re

import pytest

from .pages import PAGES, ROOT

WORDS = set(re.findall(r"\w+", "\n".join(page.read_text(encoding="utf-8") for page in PAGES)))
HANDLES = ("torch/step/handle.py", "keras/attaching.py", "jax/recording.py", "live/handle.py")


def shown(source: str) -> dict[str, list[str]]:
    """The methods that the reference shows, of each class that is a handle or is theirs."""
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    return {
        node.name: [
            member.name
            for member in node.body
            if isinstance(member, ast.FunctionDef)
            and not member.name.startswith("_")
            and "internal" not in map(ast.unparse, member.decorator_list)
        ]
        for node in classes
        if node.name == "Handle" or "Handle" in map(ast.unparse, node.bases)
    }


@pytest.mark.parametrize("file", HANDLES)
def test_what_a_handle_offers_is_told_of_in_the_docs(file: str) -> None:
    offered = shown((ROOT / "src" / "steadygrad" / file).read_text(encoding="utf-8"))
    assert len(offered) == 1
    for names in offered.values():
        assert len(names) >= 3
        assert set(names) <= WORDS, "mark it with @internal, or say in docs/ what it is for"


def test_only_what_is_marked_is_left_out() -> None:
    source = (
        "class A(Handle):\n  @internal\n  def a(self): ...\n  def b(self): ...\n  def _c(self): ..."
    )
    assert shown(source) == {"A": ["b"]}
