"""Whether a run goes on, as far as its file shows it."""

from __future__ import annotations

SILENT_SECONDS = 60.0
"""A run without a step for so long, whose file does not say that it ended, may have been killed."""
