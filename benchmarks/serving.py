"""How long `steadygrad serve` takes to show 200 runs, and a run of 1,000,000 steps.

``python -m benchmarks.serving [FOLDER]`` makes the runs in FOLDER (a minute or two; a temporary
one by default), and opens the pages in Chromium. Seconds from the click to what is seen.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from steadygrad.runlog import RunWriter, StepRecord, TensorInfo

RUNS, SHORT, LONG, TENSORS = 200, 500, 1_000_000, 4
ROWS = "() => document.querySelectorAll('tbody tr').length >= %d"
DRAWN = "() => document.querySelector('.plot .main-svg') !== null"
JUDGED = "() => !document.querySelector('tbody').textContent.includes('not judged yet')"


def make(path: Path, steps: int, seed: int) -> None:
    """A run with lognormal norms and a falling loss."""
    norms = np.exp(np.random.default_rng(seed).normal(0.0, 0.3, steps))
    zeros = np.zeros(TENSORS, np.int64)
    with RunWriter(path, info={"policy": "norm:1.0" if seed % 2 else "none"}) as writer:
        ids = writer.add_tensors([TensorInfo(f"layer{i}.weight", (4, 4)) for i in range(TENSORS)])
        for step, norm in enumerate(norms.tolist()):
            figures = np.full(TENSORS, norm / 2)
            loss = 2.0 - 1.5 * step / steps
            writer.write_step(
                StepRecord(step, norm=norm, loss=loss), ids, figures, figures, zeros, zeros
            )
            if step % 20_000 == 19_999:
                writer.flush()


def seconds(tab: Any, condition: str, began: float) -> str:
    """Wait until something is seen."""
    tab.wait_for_function(condition, timeout=300_000)
    return f"{time.perf_counter() - began:.2f} s"


def measure(browser: Any, folder: Path, count: int) -> None:
    """Open the list just after the server has started, then a report."""
    command = [sys.executable, "-m", "steadygrad", "serve", str(folder), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = (server.stdout.readline() if server.stdout else "").split()[-1]
        tab = browser.new_page()
        began = time.perf_counter()
        tab.goto(address)
        print(f"{folder.name}: list of {count}", seconds(tab, ROWS % count, began))
        tab.wait_for_selector("tbody a", timeout=300_000)  # it has been read
        print(f"{folder.name}: read after {time.perf_counter() - began:.2f} s")
        clicked = time.perf_counter()
        tab.locator("tbody a").first.click()
        print(f"{folder.name}: report", seconds(tab, DRAWN, clicked))
        tab.goto(address)
        print(f"{folder.name}: all judged", seconds(tab, JUDGED, began))
        clicked = time.perf_counter()
        tab.locator("tbody a").first.click()
        print(f"{folder.name}: report, judged", seconds(tab, DRAWN, clicked))
        tab.close()
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    """Make the runs, and measure."""
    from playwright.sync_api import sync_playwright

    home = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    many, long = home / "many", home / "long"
    if not many.exists():
        many.mkdir(parents=True)
        for seed in range(RUNS):
            make(many / f"run{seed:03}.db", SHORT, seed)
    if not long.exists():
        long.mkdir()
        make(long / "long.db", LONG, 1)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        measure(browser, many, RUNS)
        measure(browser, long, 1)


if __name__ == "__main__":
    main()
