"""The terminal view: complete, and not to be driven by what a run calls its tensors."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from rich.console import Console

from steadygrad.report import build
from steadygrad.report.terminal import BLOCKS, view
from steadygrad.runlog import Run


def shown(runs: list[Run], width: int = 100, *, colour: bool = False) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False, force_terminal=colour).print(view(build(runs)))
    return out.getvalue()


def test_it_says_verdict_threshold_findings_and_fix(a_run: Callable[..., Run]) -> None:
    run = a_run(nan_from=300)
    told, text = build([run])["runs"][0], shown([run], 200)
    assert told["verdict"]["sentence"] in text
    assert f"--clip {told['recommendation']['spec']}" in text
    assert told["findings"]
    for finding in told["findings"]:
        assert finding["id"] in text
        assert finding["fixes"][0].splitlines()[0] in text
    assert "NaN or inf ×" not in text.split("Gradient norm")[0][:50]
    assert "×" in text


def test_the_curve_rises_where_the_norm_does() -> None:
    run = Run.from_arrays(steps={"norm": np.geomspace(1, 1000, 500)})
    lines = shown([run]).split("Gradient norm")[2].splitlines()[1:6]
    cells = [line.ljust(100)[13:97] for line in lines]
    heights = [sum(BLOCKS.index(row[x]) for row in cells) for x in range(84)]
    assert heights == sorted(heights)
    assert heights[0] <= 2
    assert heights[-1] >= 38


@pytest.mark.parametrize("width", [40, 80, 160])
def test_no_line_is_wider_than_the_terminal(a_run: Callable[..., Run], width: int) -> None:
    text = shown([a_run(nan_from=300), a_run(clip=1.0)], width)
    assert max(map(len, text.splitlines())) <= width


def test_hostile_names_neither_style_nor_drive_the_terminal(a_run: Callable[..., Run]) -> None:
    names = ("[red]x[/red]", "\x1b[2J\x07wiped", "[/]")
    run = a_run(
        nan_from=300, names=names, tensors=3, info={"device": names[0], "command": [names[1]]}
    )
    text = shown([run], 200)
    assert "[red]x[/red]" in text
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\x1b[2J" not in shown([run], 200, colour=True)


def test_several_runs_come_with_a_table(a_run: Callable[..., Run]) -> None:
    text = shown([a_run(), a_run(clip=1.0)], 160)
    assert "Final loss" in text
    assert text.index("Lowest final loss") < text.index("run 2:")
