"""`make test-oldest` and its kin install the versions that pyproject.toml promises, none higher."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ELSEWHERE = {"numpy", "torch"}  # their floors do not go with the others': they have a file


def promised() -> dict[str, str]:
    """The lowest version of each package that a user may have."""
    text = (ROOT / "pyproject.toml").read_text()
    return dict(re.findall(r'"([\w-]+)>=([\d.]+)[";]', text))


def too_high(pins: str, floors: dict[str, str]) -> list[str]:
    """The pins that are not of the series that a floor names."""
    pinned = dict(re.findall(r"^([\w-]+?)(?:-cpu)?==([\d.]+)$", pins, re.MULTILINE))
    return [
        f"{name} {version}, promised {floors[name]}"
        for name, version in pinned.items()
        if name in floors and not f"{version}.".startswith(f"{floors[name]}.")
    ]


def test_the_oldest_versions_are_those_promised() -> None:
    pins = (ROOT / "constraints-oldest.txt").read_text()
    told = {line.split(" ")[0] for line in too_high(pins, promised())}
    assert told == ELSEWHERE
    assert len(re.findall("==", pins)) > 8


def test_those_of_torch_and_numpy_have_their_own_environment() -> None:
    pins = (ROOT / "constraints-oldest-torch.txt").read_text()
    assert not too_high(pins, promised())
    assert {f"{name}==" for name in ELSEWHERE} <= set(re.findall(r"^\w+==", pins, re.MULTILINE))


def test_a_pin_over_its_floor_is_seen() -> None:
    assert too_high("keras==3.11.0\noptax==0.2.5\n", {"keras": "3.10", "optax": "0.2.5"}) == [
        "keras 3.11.0, promised 3.10"
    ]
