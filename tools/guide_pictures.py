"""Draw the guide's pictures, from computations: ``python tools/guide_pictures.py``.

Grey on transparent, so that they read on a light page and on a dark one. Needs matplotlib.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("svg")
import matplotlib.pyplot as plt

FOLDER = Path(__file__).parents[1] / "docs" / "guide" / "img"
COLOURS = ("#2f7fd3", "#7d8590", "#d9622b")
STYLE = {
    "svg.hashsalt": "steadygrad",
    "font.size": 11,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#888888",
    "xtick.color": "#888888",
    "ytick.color": "#888888",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def depth() -> None:
    """The norm of a gradient on its way back through 100 random layers."""
    rng = np.random.default_rng(0)
    figure, axes = plt.subplots(figsize=(7, 3.2))
    for gain, colour in zip((0.9, 1.0, 1.1), COLOURS, strict=True):
        gradient = rng.normal(size=200)
        norms = [1.0]
        start = np.linalg.norm(gradient)
        for _ in range(100):
            gradient = gain * rng.normal(size=(200, 200)).T @ gradient / 200**0.5
            norms.append(float(np.linalg.norm(gradient) / start))
        axes.semilogy(norms, color=colour)
        axes.annotate(f" × {gain}", (100, norms[-1]), color=colour, va="center")
    axes.set(xlabel="layers from the loss", ylabel="norm of the gradient", xlim=(0, 108))
    save(figure, "depth")


def direction() -> None:
    """The cosine that clipping by value and by norm leave, over the share of elements cut."""
    rng = np.random.default_rng(0)
    gradient = rng.standard_t(2.0, size=100_000)
    shares = np.linspace(0.0005, 0.999, 200)
    limits = np.quantile(np.abs(gradient), 1 - shares)
    cosines = [cosine(gradient, np.clip(gradient, -limit, limit)) for limit in limits]
    figure, axes = plt.subplots(figsize=(7, 3.2))
    axes.plot(100 * shares, cosines, color=COLOURS[2])
    axes.plot([0, 100], [1, 1], color=COLOURS[0])
    axes.annotate("by norm", (60, 0.97), color=COLOURS[0], va="top")
    axes.annotate("by value", (60, cosines[120] + 0.02), color=COLOURS[2], va="bottom")
    axes.set(xlabel="elements that are cut, %", ylabel="cosine", xlim=(0, 100), ylim=(0, 1.05))
    save(figure, "direction")


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def save(figure: plt.Figure, name: str) -> None:
    figure.tight_layout()
    figure.savefig(FOLDER / f"{name}.svg", transparent=True, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    with plt.rc_context(STYLE):
        depth()
        direction()
