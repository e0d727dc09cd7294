"""The live card in JupyterLab and the live page, in a headless Chromium: checked, and pictured.

``python tools/live_pictures.py [FOLDER] [--jupyter PATH]`` opens each notebook of
``examples/notebooks`` in a JupyterLab of its own, runs its cells one after another as a user
does (Shift-Enter), and fails where a cell shows an error, a card is wider than its place, or the
card below a cell that trains is not drawn anew while it trains. Then it serves a folder with a
training that goes on. Pictures, dark and light, wide and narrow, are put into FOLDER. JupyterLab
is not among the project's packages; the kernel is this Python's own:

    python -m venv lab && lab/bin/pip install jupyterlab
    python tools/live_pictures.py pictures --jupyter lab/bin/jupyter-lab
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
from playwright.sync_api import sync_playwright

from steadygrad.runlog import RunWriter, StepRecord, TensorInfo

NOTEBOOKS = Path(__file__).parent.parent / "examples" / "notebooks"
CELL_SECONDS = 300
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
SLOW = """\
import time
optimizer = torch.optim.SGD(model.parameters(), lr=0.03)
steady = sg.attach(optimizer, clip="norm:3", model=model, run="card.db")
for step in range(150):
    optimizer.zero_grad()
    x = torch.randn(16, 8)
    (model(x) - x.sum(1, keepdim=True)).pow(2).mean().backward()
    optimizer.step()
    time.sleep(0.04)
"""
"""A cell that takes six seconds: the card is drawn several times below it."""


FIRST = """\
import torch, steadygrad.torch as sg
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
"""
KERNEL = {"name": "steadygrad", "display_name": "steadygrad", "language": "python"}


def live_notebook() -> Any:
    """The notebook of the cell whose card is watched."""
    cells = [nbformat.v4.new_code_cell(text) for text in (FIRST, SLOW, "steady")]
    return nbformat.v4.new_notebook(cells=cells)


def prepared(folder: Path, theme: str) -> dict[str, str]:
    """Copies of the notebooks, a kernel that is this Python, settings; the environment."""
    notebooks = {path.name: nbformat.read(path, 4) for path in NOTEBOOKS.glob("*.ipynb")}
    for name, notebook in {**notebooks, "live_card.ipynb": live_notebook()}.items():
        notebook.metadata["kernelspec"] = KERNEL  # without one the page asks for it
        nbformat.write(notebook, folder / name)
    kernel = folder / "data" / "kernels" / KERNEL["name"]
    kernel.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({**KERNEL, "argv": argv}))
    settings = folder / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "themes.jupyterlab-settings").write_text(json.dumps({"theme": THEMES[theme]}))
    (settings / "notification.jupyterlab-settings").write_text(
        json.dumps({"fetchNews": "false", "checkForUpdates": False})
    )
    tracker = folder / "settings" / "@jupyterlab" / "notebook-extension"
    tracker.mkdir()
    windowing = json.dumps({"windowingMode": "none"})  # cells out of sight are there, too
    (tracker / "tracker.jupyterlab-settings").write_text(windowing)
    return {
        **os.environ,
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "OMP_NUM_THREADS": "1",
    }


@contextlib.contextmanager
def lab(jupyter: str, theme: str) -> Iterator[str]:
    """A JupyterLab over copies of the notebooks; its address."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [jupyter, "--no-browser", "--allow-root", "--ServerApp.port=0"]
        command += ["--IdentityProvider.token=", f"--ServerApp.root_dir={folder}"]
        server = subprocess.Popen(
            command, env=prepared(folder, theme), stderr=subprocess.PIPE, text=True, cwd=folder
        )
        try:
            yield listening_at(server)
        finally:
            server.terminate()
            server.wait(60)


def listening_at(server: subprocess.Popen[str]) -> str:
    """The address that the server writes when it listens."""
    assert server.stderr is not None
    for line in server.stderr:
        if "http://" in line and "/lab" in line:
            address = line.split("http://")[1].split("/lab")[0]
            return f"http://{address}"
    raise SystemExit("JupyterLab did not start")


class Notebook:
    """One notebook open in a tab.

    Args:
        tab: a page of Playwright's.
        address: of the server.
        name: of the notebook.
        cells: how many cells of code it has.
    """

    def __init__(self, tab: Any, address: str, name: str, cells: int) -> None:
        self.tab = tab
        tab.goto(f"{address}/lab/tree/{name}?reset")
        there = f"document.querySelectorAll('.jp-Notebook .jp-CodeCell').length === {cells}"
        tab.wait_for_function(f"() => {there}", timeout=120_000)
        idle = ".jp-Notebook-ExecutionIndicator[data-status=idle]"
        # a narrow toolbar folds it away
        tab.wait_for_selector(idle, timeout=120_000, state="attached")

    def cells(self) -> list[Any]:
        """The cells of code, in order."""
        return self.tab.locator(".jp-Notebook .jp-CodeCell").all()

    def start(self, cell: Any) -> None:
        """Click into a cell and type Shift-Enter."""
        cell.scroll_into_view_if_needed()
        cell.locator(".jp-InputPrompt").click()
        self.tab.keyboard.press("Shift+Enter")

    def is_running(self, cell: Any) -> bool:
        """Whether the cell has no number yet."""
        prompt = cell.locator(".jp-InputPrompt").inner_text()
        return not any(map(str.isdigit, prompt))

    def finish(self, cell: Any) -> None:
        """Wait for a cell, which may show no error."""
        deadline = time.monotonic() + CELL_SECONDS
        while self.is_running(cell):
            if time.monotonic() > deadline:
                raise SystemExit("a cell does not end")
            time.sleep(0.2)
        errors = cell.locator(".jp-OutputArea-output[data-mime-type*=error]").all_inner_texts()
        if errors:
            raise SystemExit(f"a cell shows an error:\n{errors[0]}")


def cells_of(path: Path) -> int:
    """How many cells of code a notebook has."""
    return sum(cell.cell_type == "code" for cell in nbformat.read(path, 4).cells)


def drawn_while(notebook: Notebook, cell: Any) -> list[str]:
    """What the live card said while its cell was running, each drawing once."""
    said: list[str] = []
    while notebook.is_running(cell):
        card = cell.locator(".jp-OutputArea [role=group]")
        text = card.first.inner_text() if card.count() else ""
        if text and text not in said[-1:]:
            said.append(text)
        time.sleep(0.1)
    return said


def watch_the_card(notebook: Notebook, pictures: Path, theme: str) -> None:
    """The card is drawn several times while its cell trains, and ends with a verdict."""
    first, trains, shows = notebook.cells()
    notebook.start(first)
    notebook.finish(first)
    notebook.start(trains)
    said = drawn_while(notebook, trains)
    notebook.finish(trains)
    if len(said) < 3 or not all(text.startswith("Training: card") for text in said):
        raise SystemExit(f"the card was not drawn anew while its cell trained: {said}")
    notebook.tab.wait_for_selector("text=Trained: card.db")
    last = trains.locator(".jp-OutputArea [role=group]").inner_text()
    if "steps 150" not in last:
        raise SystemExit(f"the card does not end with the last step: {last}")
    trains.locator(".jp-OutputArea").screenshot(path=pictures / f"live-card-{theme}.png")
    notebook.start(shows)
    notebook.finish(shows)
    print(f"{theme}: the card was drawn {len(said)} times while its cell trained", flush=True)


def run_all(notebook: Notebook, pictures: Path, name: str) -> None:
    """Run a tutorial cell by cell; a picture of each cell that shows something of ours."""
    for place, cell in enumerate(notebook.cells()):
        notebook.start(cell)
        notebook.finish(cell)
        output = cell.locator(".jp-OutputArea")
        if cell.locator("[role=group], iframe").count():
            output.first.screenshot(path=pictures / f"{name}-{place}.png")
        fits = "g => g.scrollWidth <= g.clientWidth"
        wide = f"e => [...e.querySelectorAll('[role=group]')].every({fits})"
        if not cell.evaluate(wide):
            raise SystemExit(f"{name}: a card of cell {place} is wider than its place")


def write(path: Path, steps: int, policy: str, broken: int = -1) -> RunWriter:
    """A run that goes on: norms about 1, a falling loss, NaN from one step on."""
    noise = np.random.default_rng(steps).normal(0.0, 0.3, steps)
    writer = RunWriter(path, info={"policy": policy})
    ids = writer.add_tensors([TensorInfo("fc.weight", (8, 8)), TensorInfo("fc.bias", (8,))])
    for step, norm in enumerate(np.exp(noise).tolist()):
        ruined = 0 <= broken <= step
        value = math.nan if ruined else norm
        limit = 1.5 if policy == "norm:1.5" else math.inf
        record = StepRecord(
            step,
            loss=math.nan if ruined else 2.0 - 1.5 * step / steps,
            norm=value,
            threshold=limit,
            coef=min(1.0, limit / norm),
            action="clip" if norm > limit else "none",
            nonfinite=72 if ruined else 0,
        )
        bad = [64, 8] if ruined else [0, 0]
        writer.write_step(record, ids, [value, value / 3], [value, value], bad, [0, 0])
    writer.flush()
    return writer


def picture_the_page(browser: Any, pictures: Path) -> None:
    """The list over four runs, and a report, as `steadygrad serve` shows them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "baseline.db", 800, "none").close()
        write(folder / "clipped.db", 800, "norm:1.5").close()
        write(folder / "broken.db", 400, "none", broken=360).close()
        goes_on = write(folder / "now.db", 300, "norm:1.5")
        command = [sys.executable, "-m", "steadygrad", "serve", str(folder), "--port", "0"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[-1]
            for theme, width in (("light", 1200), ("dark", 1200), ("light", 420), ("dark", 420)):
                tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
                tab.goto(address)
                judged = "() => document.querySelectorAll('tbody td b').length === 4"
                tab.wait_for_function(judged, timeout=120_000)
                whole = tab.locator("body").bounding_box()
                clip = {**whole, "height": min(whole["height"], 900)}
                tab.screenshot(path=pictures / f"serve-{theme}-{width}.png", clip=clip)
                tab.get_by_role("link", name="clipped.db", exact=True).click()
                tab.wait_for_selector(".plot .main-svg", timeout=120_000)
                tab.screenshot(path=pictures / f"serve-report-{theme}-{width}.png")
                tab.close()
        finally:
            server.terminate()
            server.wait(60)
            goes_on.close()


def main() -> None:
    """Start, run, look."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", default="pictures", type=Path)
    parser.add_argument("--jupyter", default="jupyter-lab", help="the program of JupyterLab")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        picture_the_page(browser, asked.folder)
        for theme, width in (("light", 1200), ("dark", 560)):
            with lab(asked.jupyter, theme) as address:
                tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
                tab.on("pageerror", lambda error: print("page:", error, flush=True))
                watch_the_card(Notebook(tab, address, "live_card.ipynb", 3), asked.folder, theme)
                tutorials = sorted(NOTEBOOKS.glob("*.ipynb")) if theme == "light" else []
                for path in tutorials:
                    run_all(
                        Notebook(tab, address, path.name, cells_of(path)), asked.folder, path.stem
                    )
                    print(f"{path.stem}: every cell ran", flush=True)
                tab.close()
        browser.close()


if __name__ == "__main__":
    main()
