"""One frame: a snapshot laid out for a terminal, 80 columns or more, never taller than it.

Names from the run go through `printable` and `Text`, so that a tensor's name can neither
drive the terminal nor be read as markup.
"""

from __future__ import annotations

import time

import numpy as np
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from steadygrad.recovery.episodes import counted, episodes
from steadygrad.recovery.undone import stretches
from steadygrad.report.numbers import duration, figure
from steadygrad.report.terminal import STYLES
from steadygrad.runlog.state import SILENT_SECONDS
from steadygrad.text import printable
from steadygrad.watch.snapshot import FrameContent, LastSteps, TensorRow
from steadygrad.watch.spark import spark

LABEL = 10
FIGURE = 11
CURVE = 14
MOST_FINDINGS = 3
RATE_STEPS = 100
MOST_ACTS = 1000
"""Acts among which the last ones are joined: a frame costs the same however many there were."""


class Frame:
    """A snapshot that fits itself into the terminal it is drawn in.

    Args:
        snapshot: what to show.
        page: which page of tensors, from 0; past the last one it begins again.
        keys: say which keys there are.
        now: seconds since the Unix epoch; None for the clock.
    """

    def __init__(
        self, snapshot: FrameContent, page: int = 0, *, keys: bool = False, now: float | None = None
    ) -> None:
        self.snapshot, self.page, self.keys = snapshot, page, keys
        self.now = time.time() if now is None else now

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        height = options.height or console.size.height
        top: list[RenderableType] = [self._title(), *self._curves(width)]
        bottom = [*self._findings(), *self._footer()]
        used = sum(len(console.render_lines(part, options)) for part in (*top, *bottom))
        room = height - used - 3  # a blank line, a title, a header
        yield Group(*top, *(self._tensors(width, room) if room > 0 else ()), *bottom)

    def _title(self) -> Text:
        snapshot = self.snapshot
        title = Text(printable(snapshot.name), "bold", no_wrap=True, overflow="ellipsis")
        title.append(f"  {self.state()}", "green" if self.state() == "recording" else "yellow")
        title.append(f"  {snapshot.rows:,} steps", "default")
        if snapshot.curves:
            title.append(f"  {figure(speed(snapshot.curves[0]))} steps/s", "default")
            started = snapshot.info.get("started", float("nan"))
            title.append(f"  {duration(snapshot.last_time - started)}", "default")
        return title

    def state(self) -> str:
        """Whether the run goes on, as far as its file tells."""
        info = self.snapshot.info
        if "ended" in info:
            return f"ended ({printable(str(info.get('exit', 'ok')))})"
        silent = self.now - self.snapshot.last_time
        if silent > SILENT_SECONDS:
            return f"no step for {duration(silent)}"
        return "recording"

    def _curves(self, width: int) -> list[RenderableType]:
        if not self.snapshot.curves:
            return [Text("no steps yet", "dim")]
        lines: list[RenderableType] = []
        for curve in self.snapshot.curves:
            if len(self.snapshot.curves) > 1:
                lines.append(Text(f"optimizer {curve.optimizer}", "bold"))
            lines += _curve_lines(curve, width)
        return lines

    def _tensors(self, width: int, room: int) -> list[RenderableType]:
        tensors = self.snapshot.tensors
        if not tensors:
            return []
        pages = -(-len(tensors) // room)
        first = (self.page % pages) * room
        shown = tensors[first : first + room]
        last = first + len(shown)
        title = Text(f"tensors by norm: {first + 1}-{last} of {len(tensors)}", "bold")
        return [Text(), title, _tensor_table(shown, width)]

    def _findings(self) -> list[RenderableType]:
        grave = [f for f in self.snapshot.findings if f.severity != "info"]
        lines: list[RenderableType] = []
        for finding in grave[:MOST_FINDINGS]:
            line = Text(f"{finding.id} ", STYLES[finding.severity], no_wrap=True)
            line.append(printable(finding.title), "default")
            line.truncate(10_000, overflow="ellipsis")
            line.overflow = "ellipsis"
            lines.append(line)
        if len(grave) > MOST_FINDINGS:
            more = len(grave) - MOST_FINDINGS
            lines.append(Text(f"and {more} more: steadygrad diagnose", "dim"))
        return lines

    def _footer(self) -> list[RenderableType]:
        return [Text("n next tensors   p previous   q quit", "dim")] if self.keys else []


def speed(curve: LastSteps) -> float:
    """Steps a second over the last steps of an optimizer."""
    times = curve.steps["time"][-RATE_STEPS:]
    spent = float(times[-1] - times[0])
    return (len(times) - 1) / spent if spent > 0 else float("nan")


def _curve_lines(curve: LastSteps, width: int) -> list[Text]:
    steps = curve.steps
    room = max(8, width - LABEL - FIGURE - 1)
    drawn = ~np.isnan(steps["loss"]) | (steps["nonfinite"] > 0)
    lines = []
    if drawn.any():
        losses = spark(steps["loss"][drawn], room, faded=list(curve.undone[drawn]))
        lines.append(_line("loss", steps["loss"][-1], losses))
    norms = spark(
        steps["norm"], room, log=True, marked=list(curve.clipped), faded=list(curve.undone)
    )
    lines.append(_line("grad norm", steps["norm"][-1], norms))
    lines.append(_clipping(curve))
    return lines + ([_recovery(curve)] if curve.acts else [])


def _recovery(curve: LastSteps) -> Text:
    line = Text(f"{'recovery':<{LABEL}} ", "dim", no_wrap=True, overflow="ellipsis")
    back = sum(last - first + 1 for first, last in stretches(curve.acts))
    line.append(counted(curve.acts, back), "default")
    last = str(episodes(curve.acts[-MOST_ACTS:])[-1])
    return line.append(f"; last: {printable(last)}", "dim")


def _line(label: str, value: float, drawn: Text) -> Text:
    line = Text(f"{label:<{LABEL}}", "dim", no_wrap=True)
    line.append(f"{shown(value):>{FIGURE}} ", "default")
    return line.append_text(drawn)


def shown(value: float) -> str:
    """A measured figure; NaN by its name, since here it is a measurement.

    Example:
        >>> shown(float("nan")), shown(float("inf")), shown(2.5)
        ('NaN', '∞', '2.5')
    """
    return "NaN" if np.isnan(value) else figure(float(value))


def _clipping(curve: LastSteps) -> Text:
    last = curve.steps[-1]
    threshold = "none" if np.isinf(last["threshold"]) else shown(last["threshold"])
    recent = curve.clipped[-RATE_STEPS:].mean()
    skipped = int((curve.steps["action"] == "skip").sum())
    parts = [
        f"threshold {threshold}",
        f"coef {shown(last['coef'])}",
        f"clipped {100 * curve.clipped.mean():.0f} % (last {RATE_STEPS}: {100 * recent:.0f} %)",
    ]
    if skipped:
        parts.append(f"skipped {skipped}")
    if not np.isnan(last["lr"]):
        parts.append(f"lr {shown(last['lr'])}")
    if last["loss_scale"] != 1.0:
        parts.append(f"loss scale {shown(last['loss_scale'])}")
    return Text("  ".join(parts))


def _tensor_table(rows: list[TensorRow], width: int) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), width=width, header_style="dim")
    widths = {"norm": 8, "max": 8, "zeros": 5, "bad": 6}
    name_width = max(16, width - sum(widths.values()) - CURVE - len(widths) - 2)
    table.add_column("tensor", no_wrap=True, width=name_width)
    for heading, column in widths.items():
        table.add_column(heading, justify="right", no_wrap=True, width=column)
    table.add_column("", no_wrap=True, width=CURVE)
    for row in rows:
        bad = figure(row.nonfinite) if row.nonfinite else ""
        table.add_row(
            Text(short_name(printable(row.name), name_width)),
            shown(float(row.norms[-1])),
            shown(row.max_abs),
            f"{100 * row.zeros:.0f} %",
            Text(bad, "bold red"),
            spark(row.norms, CURVE, log=True),
        )
    return table


def short_name(name: str, width: int) -> str:
    """A tensor's name cut to a width so that it stays apart from its neighbours'.

    Leading parts shrink to a letter first, since the end and the numbers tell tensors apart.

    Example:
        >>> short_name("encoder.layers.11.attention.weight", 24)
        'e.l.11.attention.weight'
        >>> short_name("a_name_without_any_dots_in_it", 11)
        'a_nam…in_it'
    """
    parts = name.split(".")
    for place, part in enumerate(parts[:-1]):
        if len(".".join(parts)) <= width:
            break
        parts[place] = part if part.isdigit() else part[:1]
    short = ".".join(parts)
    if len(short) <= width:
        return short
    left = (width - 1) // 2
    return f"{short[:left]}…{short[len(short) - (width - 1 - left) :]}"
