"""The report in a terminal: verdict, threshold, curves in block letters, findings, table.

Every string that comes from a run goes through `Text`, never through rich's
markup: a tensor named ``[red]`` is shown as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from steadygrad.report.model import (
    FigureCurve,
    FindingData,
    KeyFigure,
    Recommendation,
    Recovered,
    ReportData,
    RunData,
    RunsCompared,
    StretchData,
)
from steadygrad.report.numbers import figure
from steadygrad.report.page import facts, overhead_sentence
from steadygrad.text import printable

STYLES = {"error": "bold red", "warning": "bold yellow", "ok": "bold green", "info": "dim"}
BLOCKS = " ▁▂▃▄▅▆▇█"
CHART_ROWS = 5
LEFT = 11


def view(report: ReportData) -> RenderableType:
    """Lay a report out for a terminal.

    Args:
        report: as `build` makes it.

    Returns:
        Something for `rich.console.Console.print`.
    """
    report = printable(report)
    parts: list[RenderableType] = []
    if report["comparison"]:
        parts += [Text(report["comparison"]["sentence"], "bold"), Text()]
        parts += [Text(note) for note in report["notes"]]
        parts += [_comparison(report["comparison"])]
    for run in report["runs"]:
        parts += [Text(), *_run(run, named=len(report["runs"]) > 1)]
    footer = overhead_sentence(report["runs"])
    if footer:
        parts += [Text(), Text(footer, "dim")]
    return Padding(Group(*parts), (1, 2))


class Chart:
    """A curve in block letters, as wide as the console.

    Args:
        title: what stands above it.
        curve: ``step``, ``value`` (None where not finite) and ``off_scale``.
        log: whether heights are logarithms.
        threshold: a level to mark on the left, or None.
        recovery: ``undone`` stretches, told by a line below; empty for none.
    """

    def __init__(
        self,
        title: str,
        curve: FigureCurve,
        *,
        log: bool,
        threshold: float | None = None,
        recovery: Recovered | None = None,
    ) -> None:
        self.title, self.curve, self.log, self.threshold = title, curve, log, threshold
        self.undone = recovery["undone"] if recovery else []

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = max(10, min(options.max_width, 100) - LEFT - 1)
        tops, broken = columns(self.curve, width)
        heights = [self._height(v) for v in tops]
        seen = [h for h in heights if h is not None]
        if not seen:
            yield Text(f"{self.title}: nothing finite", "dim")
            return
        low, high = min(seen), max(seen)
        yield Text(self.title, "bold")
        for row in reversed(range(CHART_ROWS)):
            yield self._line(row, heights, low, high)
        if any(broken):
            marks = "".join("×" if b else " " for b in broken)
            yield Text.assemble(("NaN or inf".rjust(LEFT - 1) + " ", "dim"), (marks, "red"))
        if self.undone:
            marks = "".join("░" if u else " " for u in covered(self.undone, self.curve, width))
            yield Text.assemble(("taken back".rjust(LEFT - 1) + " ", "dim"), (marks, "default"))

    def _height(self, value: float | None) -> float | None:
        if value is None or (self.log and value <= 0):
            return None
        return math.log10(value) if self.log else value

    def _line(self, row: int, heights: Sequence[float | None], low: float, high: float) -> Text:
        span = (high - low) or 1.0
        cells = []
        for height in heights:
            eighths = 0 if height is None else 1 + (8 * CHART_ROWS - 1) * (height - low) / span
            cells.append(BLOCKS[int(min(8, max(0, round(eighths - 8 * row))))])
        label = {0: self._level(low), CHART_ROWS - 1: self._level(high)}.get(row, "")
        over = self._over_threshold(row, low, span)
        return Text.assemble((label.rjust(LEFT - 1) + " ", "dim"), ("".join(cells), over))

    def _over_threshold(self, row: int, low: float, span: float) -> str:
        level = self._height(self.threshold)
        return "yellow" if level is not None and low + span * row / CHART_ROWS >= level else "cyan"

    def _level(self, height: float) -> str:
        return figure(10.0**height if self.log else height)


def columns(curve: FigureCurve, width: int) -> tuple[list[float | None], list[bool]]:
    """The largest value of each column of a chart, and which columns hold NaN or inf.

    Example:
        >>> columns({"step": [0, 1, 2, 3], "value": [1.0, 5.0, None, 2.0],
        ...          "off_scale": [{"kind": "nan", "first": 2, "last": 2, "count": 1}]}, 2)
        ([5.0, 2.0], [False, True])
    """
    tops: list[float | None] = [None] * width
    broken = [False] * width
    if not curve["step"]:
        return tops, broken
    column = _column_of(curve, width)
    for step, value in zip(curve["step"], curve["value"], strict=True):
        at = column(step)
        if value is not None:
            best = tops[at]
            tops[at] = value if best is None else max(value, best)
    for mark in curve["off_scale"]:
        if mark["kind"] != "zero":
            for at in range(column(mark["first"]), column(mark["last"]) + 1):
                broken[at] = True
    return tops, broken


def covered(stretches: Sequence[StretchData], curve: FigureCurve, width: int) -> list[bool]:
    """Which columns of a chart hold a step of these stretches.

    Example:
        >>> covered([{"first": 2, "last": 3}], {"step": [0, 1, 2, 3, 4, 5, 6, 7]}, 4)
        [False, True, False, False]
    """
    column = _column_of(curve, width)
    columns = [False] * width
    for stretch in stretches:
        for at in range(max(column(stretch["first"]), 0), max(column(stretch["last"]), -1) + 1):
            columns[at] = True
    return columns


def _column_of(curve: FigureCurve, width: int) -> Callable[[float], int]:
    first, last = curve["step"][0], curve["step"][-1]
    return lambda step: min(width - 1, int((step - first) * width / (last - first + 1)))


def _run(run: RunData, *, named: bool) -> list[RenderableType]:
    judgement = run["verdict"]
    head = Text.assemble((f"{run['name']}: " if named else "", "bold"))
    head.append(f"{judgement['word']}. ", STYLES.get(judgement["level"], "bold"))
    head.append(judgement["sentence"])
    parts: list[RenderableType] = [head, Text(), *_recommendation(run["recommendation"])]
    parts += [Text(), _figures(run["figures"]), *_charts(run)]
    for finding in run["findings"]:
        parts += [Text(), _finding(finding)]
    if not run["findings"]:
        parts += [Text(), Text("No rule found anything to report.", "dim")]
    parts += [Text(), Text("  ".join(f"{k} {v}" for k, v in facts(run)), "dim")]
    return parts


def _recommendation(rec: Recommendation) -> list[RenderableType]:
    if rec["threshold"] is None:
        return [Text.assemble(("No threshold yet: ", "bold"), rec["reason"])]
    return [
        Text.assemble((f"{rec['label']}  {rec['value']}", "bold"), f"   {rec['typed']}"),
        Text(rec["reason"]),
    ]


def _figures(figures: Sequence[KeyFigure]) -> Table:
    table = Table.grid(padding=(0, 3))
    table.add_row(*(Text(item["label"], "dim") for item in figures))
    table.add_row(*(Text(item["value"], "bold") for item in figures))
    table.add_row(*(Text(item["note"], "dim") for item in figures))
    return table


def _charts(run: RunData) -> list[RenderableType]:
    parts: list[RenderableType] = []
    several = len(run["series"]) > 1
    for series, optimizer in zip(run["series"], run["optimizers"], strict=True):
        of = f", {optimizer['name']}" if several else ""
        if series["loss"]["step"]:
            parts += [
                Text(),
                Chart(f"Loss{of}", series["loss"], log=False, recovery=series["recovery"]),
            ]
        threshold = run["recommendation"]["threshold"]
        title = f"Gradient norm{of}, log scale"
        title += f"; yellow is over {figure(threshold)}" if threshold else ""
        parts += [
            Text(),
            Chart(
                title, series["norm"], log=True, threshold=threshold, recovery=series["recovery"]
            ),
        ]
    return parts


def _finding(finding: FindingData) -> RenderableType:
    style = STYLES[finding["severity"]]
    head = Text.assemble((f"{finding['severity']} {finding['id']}", style), "  ")
    head.append(finding["title"], "bold")
    parts: list[RenderableType] = [head, *(Text(f"  {line}") for line in finding["evidence"])]
    if finding["fixes"]:
        code = "\n".join(f"    {line}" for line in finding["fixes"][0].splitlines())
        parts += [Text("  What to change:", "dim"), Text(code, "green")]
    parts += [Text(f"  More: steadygrad explain {finding['id']}", "dim")]
    return Group(*parts)


def _comparison(compared: RunsCompared) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("Run")
    for column in compared["columns"]:
        table.add_column(Text(column), justify="right")
    for row in compared["rows"]:
        table.add_row(Text(row["name"], "bold"), *(Text(cell) for cell in row["cells"]))
    return table
