"""Reports: findings and records as one offline HTML file, its JSON twin, and a terminal view.

Importing this loads neither Jinja, Plotly nor rich: `steadygrad run` takes its
verdict from here.
"""

from __future__ import annotations

from steadygrad.report.files import write_report
from steadygrad.report.headline import Verdict, verdict
from steadygrad.report.summary import build

__all__ = ["Verdict", "build", "verdict", "write_report"]
