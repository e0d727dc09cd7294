"""Curves of one line, in which no spike is lost.

A column stands for several steps and shows the largest of them; one that holds a NaN or an
inf shows a cross, whatever else is in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.text import Text

BARS = "▁▂▃▄▅▆▇█"
CROSS = "✗"


def spark(
    values: ArrayLike,
    width: int,
    *,
    log: bool = False,
    marked: Sequence[bool] | None = None,
    faded: Sequence[bool] | None = None,
) -> Text:
    """Draw values as a line of block characters.

    Args:
        values: in the order of time; NaN and inf are shown as crosses.
        width: columns to fill at most.
        log: draw logarithms; for what spans many powers of ten.
        marked: values to draw in another colour, e.g. clipped steps.
        faded: values to draw in grey, e.g. steps that were taken back; all of a column must be.

    Returns:
        The line.

    Example:
        >>> spark([1.0, 2.0, 3.0, float("nan")], 10).plain
        '▁▅█✗'
    """
    array = np.asarray(values, np.float64)
    nothing = np.zeros(len(array), bool)
    marks, fades = (nothing if x is None else np.asarray(x, bool) for x in (marked, faded))
    parts = np.array_split(np.arange(len(array)), min(width, len(array)) or 1)
    heights = np.array([_height(array[part], log) for part in parts if len(part)])
    line = Text(no_wrap=True)
    for level, part in zip(_levels(heights), parts, strict=False):
        glyph, style = _glyph(level, bool(marks[part].any()))
        line.append(glyph, "bright_black" if len(part) and fades[part].all() else style)
    return line


def _height(values: NDArray[np.float64], log: bool) -> float:
    if not np.isfinite(values).all():
        return float("nan")
    largest = float(values.max())
    if not log:
        return largest
    return float(np.log10(largest)) if largest > 0 else -np.inf


def _levels(heights: NDArray[np.float64]) -> list[int]:
    """Heights as places in `BARS`, -1 for a cross."""
    usable = heights[np.isfinite(heights)]
    low, high = (usable.min(), usable.max()) if len(usable) else (0.0, 0.0)
    span = high - low
    levels = []
    for height in heights:
        if np.isnan(height):
            levels.append(-1)
        else:
            share = (max(height, low) - low) / span if span > 0 else 0.5
            levels.append(round(share * (len(BARS) - 1)))
    return levels


def _glyph(level: int, marked: bool) -> tuple[str, str]:
    if level < 0:
        return CROSS, "bold red"
    return BARS[level], "yellow" if marked else "cyan"
