"""The comparison as an offline page: the table, and loss curves with the seeds' band.

Beside it stands a report on one training of each policy, made by
`steadygrad.report`, for those who want to look closer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from steadygrad.compare.cells import Grid
from steadygrad.compare.measuring import TrainingResult
from steadygrad.compare.rows import cells, troubles
from steadygrad.compare.table import Comparison, Row
from steadygrad.errors import SteadyGradError
from steadygrad.report import write_report
from steadygrad.report.page import content_policy, script_json

HEADINGS = (
    "Policy",
    "Final loss",
    "Seeds' spread",
    "Standing",
    "Diverged",
    "Clipped",
    "Unstable",
    "Skipped",
    "Cosine",
    "Time",
)

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<title>{{ title }} · steadygrad compare</title><link rel="icon" href="data:,">
<style>
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.15rem; } h3 { font-size: 1rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { white-space: nowrap; }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid #8884; }
.scroll { overflow-x: auto; }
.plot { height: 30rem; }
pre, td code { font-family: ui-monospace, monospace; }
</style></head><body>
<h1>{{ heading }}</h1>
<p><code>{{ command }}</code>, {{ seeds }} {{ "seed" if seeds == 1 else "seeds" }} a policy.
A difference counts where it exceeds the seeds' spread: the range from
the best seed to the worst.</p>
{% if report %}<p><a href="{{ report }}">One training of each policy, closer</a></p>{% endif %}
{% for part in parts %}
{% if part.optimizer %}<h2>{{ part.optimizer }}: {{ part.sentence }}</h2>{% endif %}
<div class="scroll"><table>
<thead><tr>{% for h in headings %}<th scope="col">{{ h }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in part.rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</tbody></table></div>
{% if part.troubles %}<ul>{% for line in part.troubles %}<li>{{ line }}</li>{% endfor %}</ul>
{% endif %}
<h3>Loss</h3><p>Lines are the median seed, bands go from the lowest seed to the highest.</p>
<div class="plot" id="plot{{ loop.index0 }}" role="img"
aria-label="Loss over steps, one band a policy. {{ part.sentence }}"></div>
{% endfor %}
<script type="application/json" id="data">{{ data }}</script>
<script>{{ plotly }}</script><script>{{ script }}</script>
</body></html>
"""

SCRIPT = """
const data = JSON.parse(document.getElementById("data").textContent);
const colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777"];
const dark = matchMedia("(prefers-color-scheme: dark)").matches, lines = "#8885";
data.forEach((part, place) => {
const traces = [];
part.policies.forEach((p, i) => {
  const colour = colours[i % colours.length], x = p.curve.step;
  const name = p.spec + (p.diverged ? " (diverged: " + p.diverged + ")" : "");
  traces.push({x, y: p.curve.low, mode: "lines", line: {width: 0}, hoverinfo: "skip",
    legendgroup: p.spec, showlegend: false});
  traces.push({x, y: p.curve.high, mode: "lines", line: {width: 0}, fill: "tonexty",
    fillcolor: colour + "33", hoverinfo: "skip", legendgroup: p.spec, showlegend: false});
  traces.push({x, y: p.curve.median, mode: "lines", name, line: {color: colour, width: 2},
    legendgroup: p.spec});
});
// beside a training that diverged, the others would all be one line at the bottom
const losses = part.policies.flatMap(p => p.curve.low.concat(p.curve.high)).filter(v => v !== null);
const low = Math.min(...losses), high = Math.max(...losses);
const log = low > 0 && high > 20 * low;
Plotly.newPlot("plot" + place, traces, {
  paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
  font: {color: dark ? "#ddd" : "#222"}, margin: {t: 10, r: 10},
  legend: {orientation: "h", y: -0.2},
  hoverlabel: {bgcolor: dark ? "#222" : "#fff"},
  xaxis: {title: {text: "step"}, gridcolor: lines, zerolinecolor: lines},
  yaxis: {title: {text: "loss"}, type: log ? "log" : "linear", exponentformat: "power",
    gridcolor: lines, zerolinecolor: lines, automargin: true},
  hovermode: "x unified",
}, {responsive: true, displaylogo: false});
});
"""


def write_page(each: Sequence[Comparison], grid: Grid) -> Path:
    """Write ``compare.html``, and ``report.html`` beside it.

    Args:
        each: the comparison; one for each optimizer where there are several.
        grid: what was compared.

    Returns:
        The path of ``compare.html``.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    from steadygrad.report.page import plotly_script

    plotly = plotly_script()
    values: dict[str, object] = {
        "title": grid.script,
        "heading": each[0].sentence
        if len(each) == 1
        else f"{len(each)} optimizers, each by itself",
        "command": " ".join(each[0].command),
        "seeds": each[0].seeds,
        "headings": HEADINGS,
        "parts": [
            {
                "optimizer": one.optimizer,
                "sentence": one.sentence,
                "rows": [cells(row) for row in one.rows],
                "troubles": troubles(one, most=20),
            }
            for one in each
        ],
        "report": _closer(each, grid),
        "data": Markup(script_json([one.to_dict() for one in each])),  # nosec B704
        "plotly": Markup(plotly),  # nosec B704
        "script": Markup(SCRIPT),  # nosec B704
        "policy": content_policy([plotly, SCRIPT]),
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    page = grid.folder / "compare.html"
    page.write_text(environment.from_string(TEMPLATE).render(values), encoding="utf-8")
    return page


def _closer(each: Sequence[Comparison], grid: Grid) -> str:
    """The report on one training of each policy: its name, or empty where none recorded any."""
    files = [f for row in each[0].rows if (f := _typical(row, grid)) is not None]
    if not files:
        return ""
    try:
        write_report(files, grid.folder / "report.html", force=True, notes=_sentences(each))
    except SteadyGradError:
        return ""
    return "report.html"


def _sentences(each: Sequence[Comparison]) -> list[str]:
    return [f"{one.optimizer}: {one.sentence}" if one.optimizer else one.sentence for one in each]


def _typical(row: Row, grid: Grid) -> Path | None:
    """The run file of the seed with the middle final loss, or of any that recorded steps."""
    recorded: Sequence[TrainingResult] = [o for o in row.outcomes if o.steps]
    if not recorded:
        return None
    ordered = sorted(recorded, key=lambda o: (o.final_loss != o.final_loss, o.final_loss))
    middle = ordered[(len(ordered) - 1) // 2]
    return next(c.run_file for c in grid.cells if (c.spec, c.seed) == (middle.spec, middle.seed))
