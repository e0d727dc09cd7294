"""docs/trainers.md names the versions that the tests use (tests/docs runs its blocks)."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = (Path(__file__).parents[3] / "docs" / "trainers.md").read_text()


def test_the_page_names_the_versions_that_the_tests_use() -> None:
    from importlib.metadata import version

    said = PAGE[PAGE.index("Versions tested") : PAGE.index("## Without a line")]
    names = ("transformers", "TRL", "accelerate", "Lightning", "DeepSpeed", "torch")
    for name in names:
        told = re.search(rf"{name} (\d+(?:\.\d+)+)", said)
        assert told is not None, name
        assert f"{version(name.lower())}.".startswith(f"{told[1]}."), name
