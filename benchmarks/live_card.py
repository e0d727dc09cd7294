"""What the live card of a notebook takes: hearing a step, and drawing, in processor time.

``python -m benchmarks.live_card`` prints microseconds a step, milliseconds a drawing (publishing
left out), and the share of one core that a drawing a second, or as seldom as it is slow, comes to.
"""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np

from steadygrad.live.card import EVERY_SECONDS, REST, CardFigures, LiveCard
from steadygrad.runlog import StepRecord

STEPS, DRAWINGS = 100_000, 200


def main() -> None:
    """Measure and print."""
    norms = np.exp(np.random.default_rng(0).normal(0.0, 0.3, STEPS)).tolist()
    records = [StepRecord(step, norm=norm, loss=1.0) for step, norm in enumerate(norms)]
    figures = CardFigures()
    began = time.process_time()
    figures.add(records)
    hearing = (time.process_time() - began) / STEPS
    page = SimpleNamespace(publish=lambda *_, **__: None)
    card = LiveCard(SimpleNamespace(display_pub=page, execution_count=1))  # type: ignore[arg-type]
    card._figures = figures
    began = time.process_time()
    for _ in range(DRAWINGS):
        card._draw("Training", None)
    drawing = (time.process_time() - began) / DRAWINGS
    print(f"a step: {1e6 * hearing:.2f} us; a drawing: {1e3 * drawing:.2f} ms")
    share = drawing / max(EVERY_SECONDS, REST * drawing)
    print(f"drawn at most every {EVERY_SECONDS:g} s: {share:.2%} of one core")


if __name__ == "__main__":
    main()
