"""Cards as HTML: a title, a line of figures, a curve, sentences and code.

Nothing here knows of runs or findings: they hand over text and numbers, and this escapes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from steadygrad.text import printable

_STYLE = (
    "font-family:var(--jp-ui-font-family,system-ui,sans-serif);font-size:13px;line-height:1.45;"
    "color:var(--jp-ui-font-color1,var(--vscode-editor-foreground,var(--colab-primary-text-color,"
    "inherit)));border:1px solid var(--jp-border-color2,#8886);border-radius:6px;"
    "padding:8px 12px;margin:4px 0;max-width:720px;overflow-wrap:anywhere"
)
_COLOURS = {"error": "#d9363e", "warning": "#b97700", "info": "#2f7fd6", "ok": "#2b9348"}
_WIDTH, _HEIGHT = 320, 48

MOST_POINTS = 160
"""A curve of more values shows the largest of each stretch, so that no spike is lost."""


@dataclass(frozen=True)
class Histogram:
    """How often values fell into bins that are equally wide on the log scale.

    Attributes:
        low: where the first bin begins, above 0.
        high: where the last bin ends.
        shares: of each bin, 0 to 1.
    """

    low: float
    high: float
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Card:
    """What stands on a card; all text is plain and escaped when it is drawn.

    Attributes:
        title: one sentence.
        level: ``error``, ``warning``, ``info`` or ``ok``; the colour of the edge.
        figures: (name, value) pairs, shown side by side.
        curve: values over time, drawn on a logarithmic scale; NaN and inf become crosses.
        threshold: a line across the curve or the histogram; None for none.
        histogram: drawn below the curve; None for none.
        sentences: shown below.
        code: shown as code at the end; empty for none.
    """

    title: str
    level: str = "ok"
    figures: tuple[tuple[str, str], ...] = ()
    curve: tuple[float, ...] = ()
    threshold: float | None = None
    sentences: tuple[str, ...] = ()
    code: str = ""
    histogram: Histogram | None = None

    def as_html(self) -> str:
        """The card as a fragment of HTML, for ``_repr_html_``.

        Example:
            >>> "<b>&lt;script&gt;</b>" in Card("<script>").as_html()
            True
        """
        colour = _COLOURS.get(self.level, _COLOURS["info"])
        parts = [
            f'<div role="group" aria-label="{_escaped(self.title)}" style="{_STYLE};'
            f'border-left:4px solid {colour}">',
            f"<div><b>{_escaped(self.title)}</b></div>",
        ]
        if self.figures:
            shown = " &#183; ".join(f"{_escaped(n)} <b>{_escaped(v)}</b>" for n, v in self.figures)
            parts.append(f'<div style="opacity:.85">{shown}</div>')
        if self.curve:
            parts.append(curve(self.curve, self.threshold, colour))
        if self.histogram is not None:
            parts.append(bars(self.histogram, self.threshold, colour))
        parts += [f"<div>{_escaped(sentence)}</div>" for sentence in self.sentences]
        if self.code:
            parts.append(
                '<pre style="margin:6px 0 0;white-space:pre-wrap;background:none;color:inherit">'
                f"<code>{_escaped(self.code)}</code></pre>"
            )
        return "".join(parts) + "</div>"

    def as_text(self) -> str:
        """The card where no page is drawn: the same words, without the curve.

        Example:
            >>> print(Card("Trained", figures=(("steps", "3"), ("norm", "1"))).as_text())
            Trained
              steps 3, norm 1
        """
        figures = ", ".join(f"{name} {value}" for name, value in self.figures)
        below = [figures, *self.sentences, *self.code.splitlines()]
        return str(printable("\n".join([self.title, *(f"  {line}" for line in below if line)])))


def as_page(cards: Sequence[Card]) -> str:
    """Cards below each other."""
    return "".join(card.as_html() for card in cards)


def curve(values: Sequence[float], threshold: float | None, colour: str) -> str:
    """A small curve as inline SVG.

    Args:
        values: over time; what is not finite is a cross at the top.
        threshold: drawn as a dashed line where it lies within the curve's range.
        colour: of the crosses.

    Returns:
        The picture; empty where nothing can be drawn.
    """
    points = _thinned(values)
    logs = [math.log10(v) if 0 < v < math.inf else math.nan for v in points]
    finite = [v for v in logs if not math.isnan(v)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    span = max(high - low, 0.1)
    step = _WIDTH / max(len(points) - 1, 1)

    def y(value: float) -> float:
        return _HEIGHT - 4 - (value - low) / span * (_HEIGHT - 8)

    drawing: list[str] = []
    path, pen = [], "M"
    for i, value in enumerate(logs):
        if math.isnan(value):
            pen = "M"
            if not math.isfinite(points[i]):
                drawing.append(f'<text x="{i * step:.1f}" y="10" fill="{colour}">&#215;</text>')
        else:
            path.append(f"{pen}{i * step:.1f} {y(value):.1f}")
            pen = "L"
    if threshold is not None and threshold > 0 and low <= math.log10(threshold) <= high:
        at = y(math.log10(threshold))
        drawing.append(
            f'<line x1="0" x2="{_WIDTH}" y1="{at:.1f}" y2="{at:.1f}" stroke="currentColor" '
            'stroke-dasharray="4 3" opacity=".6"/>'
        )
    return (
        f'<svg viewBox="-2 0 {_WIDTH + 4} {_HEIGHT}" width="100%" height="{_HEIGHT}" '
        'preserveAspectRatio="none" role="img" aria-label="gradient norm over steps">'
        f'<path d="{" ".join(path)}" fill="none" stroke="currentColor" stroke-width="1.2" '
        f'vector-effect="non-scaling-stroke"/>{"".join(drawing)}</svg>'
    )


def bars(histogram: Histogram, threshold: float | None, colour: str) -> str:
    """A histogram as inline SVG, with its ends in words below.

    Args:
        histogram: what is drawn.
        threshold: drawn as a dashed line where it lies within the range.
        colour: of that line.
    """
    width = _WIDTH / len(histogram.shares)
    highest = max(histogram.shares) or 1.0
    heights = [max(2.0, share / highest * (_HEIGHT - 4)) for share in histogram.shares]
    drawing = [
        f'<rect x="{place * width:.1f}" y="{_HEIGHT - height:.1f}" width="{0.85 * width:.1f}" '
        f'height="{height:.1f}" fill="currentColor" opacity=".6"/>'
        for place, height in enumerate(heights)
        if histogram.shares[place] > 0
    ]
    words = f"norms from {histogram.low:.3g} to {histogram.high:.3g}, log scale"
    if threshold is not None and histogram.low <= threshold <= histogram.high:
        span = math.log(histogram.high / histogram.low)
        at = _WIDTH * math.log(threshold / histogram.low) / span
        drawing.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{_HEIGHT}" stroke="{colour}" '
            'stroke-width="2" stroke-dasharray="4 3" vector-effect="non-scaling-stroke"/>'
        )
        words += "; the line is the threshold"
    return (
        f'<svg viewBox="-2 0 {_WIDTH + 4} {_HEIGHT}" width="100%" height="{_HEIGHT}" '
        f'preserveAspectRatio="none" role="img" aria-label="histogram of the {words}">'
        f'{"".join(drawing)}</svg><div style="opacity:.7;font-size:12px">{words}</div>'
    )


def _thinned(values: Sequence[float]) -> list[float]:
    """At most `MOST_POINTS` values: of each stretch one that is not finite, else the largest."""
    count = min(len(values), MOST_POINTS)
    stretches = [
        values[i * len(values) // count : (i + 1) * len(values) // count] for i in range(count)
    ]
    return [next((v for v in s if not math.isfinite(v)), max(s)) for s in stretches]


def _escaped(text: str) -> str:
    """Text as HTML shows it, without characters that steer a page or turn its direction."""
    import html  # with its table of 2,000 entities, for nothing where no card is shown

    return html.escape(printable(text), quote=True)
