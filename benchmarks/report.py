"""How long a large report takes to make, what memory it takes, and how fast it opens.

    python -m benchmarks.report [--steps 100000] [--tensors 150] [--keep FOLDER]

Opening is timed in headless Chromium, from navigation until what is in view is drawn, and until
every chart further down is too; making in a process of its own, whose peak memory is told beside
that of one that only loads the same code.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from steadygrad.runlog import RunWriter, StepRecord, TensorInfo

MAKE = """
import json, resource, sys, time
from steadygrad.report import write_report, page, heatmap
from steadygrad import calibrate, diagnose
calibrate.__doc__, diagnose.__doc__
loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.perf_counter()
if len(sys.argv) > 1:
    write_report(sys.argv[1:2], sys.argv[2], force=True)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
seconds = time.perf_counter() - began
print(json.dumps({"seconds": seconds, "loaded": loaded / 1024, "peak": peak / 1024}))
"""


def record(path: Path, steps: int, tensors: int) -> None:
    """A run file with spikes, written as a training would."""
    r = np.random.default_rng(0)
    infos = [TensorInfo(f"blocks.{i // 6}.layer{i % 6}.weight", (768, 768)) for i in range(tensors)]
    zeros = np.zeros(tensors)
    with RunWriter(path, info={"policy": "norm:2.0", "script": "train.py"}) as writer:
        ids = writer.add_tensors(infos)
        for step in range(steps):
            norms = 0.1 * np.exp(r.normal(0, 0.2, tensors)) * (30 if step % 9973 == 17 else 1)
            norm = float(np.sqrt((norms * norms).sum()))
            kept = min(1.0, 2.0 / norm)
            told = StepRecord(
                step,
                loss=3 * np.exp(-step / 4e4) + 0.1 * r.normal(),
                norm=norm,
                threshold=2.0,
                coef=kept,
                action="clip" if kept < 1 else "none",
            )
            writer.write_step(told, ids, norms, 0.1 * norms, zeros, zeros)
            if step % 1000 == 0:
                time.sleep(0.02)  # lets the writing thread keep up, as a real step would


MARK = "performance.getEntriesByName('steadygrad-{}')[0].startTime / 1e3"


def opening(page: Path, rounds: int) -> list[tuple[float, float]]:
    """Seconds until what is in view is drawn, and until all is; each in a new window."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    seconds = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        for _ in range(rounds):
            tab = browser.new_page(viewport={"width": 1280, "height": 900})
            tab.goto(page.as_uri())
            tab.wait_for_selector("html[data-ready=true]")
            # the browser's own clock, from navigation on
            opened, drawn = (tab.evaluate(MARK.format(name)) for name in ("opened", "drawn"))
            seconds.append((opened, drawn))
            tab.close()
        browser.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--tensors", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="a folder to leave the files in")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = options.keep or Path(folder)
        run, page = home / "run.db", home / "report.html"
        if not run.exists():
            record(run, options.steps, options.tensors)
        command = [sys.executable, "-c", MAKE, str(run), str(page)]
        made = subprocess.run(command, capture_output=True, text=True, check=True)
        cost = json.loads(made.stdout)
        seconds = opening(page, options.rounds)
        megabytes = {
            p.suffix: p.stat().st_size / 1e6 for p in (run, page, page.with_suffix(".json"))
        }
        print(f"{options.steps} steps x {options.tensors} tensors: {megabytes['.db']:.1f} MB")
        print(f"made in    {cost['seconds']:.1f} s")
        print(f"memory     {cost['peak']:.0f} MB at most, {cost['loaded']:.0f} of it code")
        print(f"page       {megabytes['.html']:.1f} MB, twin {megabytes['.json']:.1f} MB")
        for what, times in zip(("opened in", "all drawn"), zip(*seconds, strict=True), strict=True):
            print(f"{what}  {min(times):.2f} s at best, {np.median(times):.2f} s in the median")


if __name__ == "__main__":
    main()
