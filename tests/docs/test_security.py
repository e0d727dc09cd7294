"""Each promise of docs/security.md names tests, and they are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/security.md").read_text()


def names_missing(page: str) -> list[str]:
    """The tests and files of tests that a page names and that are not there."""
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    tests = re.findall(r"`(test_\w+)`", page)
    files = re.findall(r"`(tests/[\w/.]+)`", page)
    missing = [name for name in tests if f"def {name}(" not in sources]
    return missing + [name for name in files if not (ROOT / name).exists()]


def test_the_tests_that_hold_the_promises_are_there() -> None:
    assert names_missing(PAGE) == []
    assert names_missing("`test_of_nothing` and `tests/unit/none.py`") == [
        "test_of_nothing",
        "tests/unit/none.py",
    ]


def test_every_promise_names_what_holds_it() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and "Held by" not in line]
    assert len(rows) > 20
    bare = [row for row in rows if not re.search(r"`tests?[_/]\w+|the same", row.split("|")[2])]
    assert bare == []
