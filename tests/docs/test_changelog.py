"""The changelog's fragments, and the tool that checks them."""

from __future__ import annotations

import doctest
import importlib.util

from .pages import ROOT

SPEC = importlib.util.spec_from_file_location("changelog_tool", ROOT / "tools" / "changelog.py")
assert SPEC is not None
assert SPEC.loader is not None
tool = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tool)


def test_the_examples_of_the_tool_run() -> None:
    outcome = doctest.testmod(tool)
    assert (outcome.failed, outcome.attempted) == (0, 4)


def test_the_fragments_are_well_formed() -> None:
    for path in (ROOT / "changelog.d").glob("*.md"):
        assert path.name == "README.md" or not tool.malformed(path.read_text()), path.name
