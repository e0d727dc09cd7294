"""In a real kernel: five lines to a live card, a verdict and a report; every cell twice."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from steadygrad._version import __version__

INSTALL = '%pip install "steadygrad[torch]"'
SETUP = """\
import torch
torch.manual_seed(0)
model = torch.nn.Linear(4, 1)
"""
ATTACH = """\
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
import steadygrad.torch as sg
steady = sg.attach(optimizer, clip="norm:1.0", model=model, run="run.db")
"""
TRAIN = """\
import time
for _ in range(60):
    optimizer.zero_grad()
    model(torch.randn(8, 4)).pow(2).mean().backward()
    optimizer.step()
    time.sleep(0.03)  # so that it goes on for over a second
"""
DIAGNOSE = "steady.diagnose()"
REPORT = "steady.report()"
FIVE_LINES = (INSTALL, *ATTACH.splitlines()[1:], DIAGNOSE, REPORT)
"""What somebody types who has a model and a loop."""
QUICK = TRAIN.replace("    time.sleep(0.03)  # so that it goes on for over a second\n", "")
INTERRUPTED = ATTACH + QUICK + "    raise KeyboardInterrupt"
NESTED = "%%steadygrad --out timed.db\n%%time\n" + QUICK + "7 * 6"


@pytest.fixture(scope="module")
def outputs(once: Any) -> list[list[Any]]:
    """The outputs of each cell of one notebook."""
    return [cell.outputs for cell in nbformat.reads(once("notebook", execute), 4).cells]


def execute(folder: Path) -> str:
    twice = [INSTALL, SETUP, ATTACH, TRAIN, "steady", DIAGNOSE, REPORT]
    cells = [
        *(cell for cell in twice for _ in range(2)),  # the commonest gesture
        "import steadygrad\nprint(len(steady.run), len(steadygrad.open_run('run.db')))\nsteady.run",
        "steady.calibrate()",
        INTERRUPTED,
        "print(steadygrad.open_run('run-3.db').info['exit'])",
        "%load_ext steadygrad\nsteady.detach()",
        NESTED,
        "print(len(steadygrad.open_run('timed.db')))",
    ]
    notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    client = NotebookClient(
        notebook,
        timeout=200,
        kernel_name="python3",
        allow_errors=True,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    nbformat.validate(notebook)
    assert Path(folder, "report.html").is_file()
    return nbformat.writes(notebook)


def html(cell: list[Any]) -> str:
    return "".join(o.data.get("text/html", "") for o in cell if "data" in o)


def text(cell: list[Any]) -> str:
    return "".join(o.text for o in cell if o.output_type == "stream")


def errors(cell: list[Any]) -> list[str]:
    return [o.ename for o in cell if o.output_type == "error"]


def test_five_lines_give_a_live_card_a_verdict_and_a_report_every_cell_twice(
    outputs: list[list[Any]],
) -> None:
    assert len(FIVE_LINES) == 5
    assert [errors(cell) for cell in outputs[:14]] == [[]] * 14
    assert "steadygrad[torch] in" in text(outputs[0]) or __version__ in text(outputs[0])
    assert "run.db exists; this run is recorded in run-2.db" in text(outputs[5])
    for trained, name in zip(outputs[6:8], ("run-2.db", "run-2.db"), strict=True):
        assert f"Trained: {name}" in html(trained)
        assert re.search(r"Steady.* over (60|120) steps", html(trained))  # the verdict, in words
    for handle, findings, report in zip(*(outputs[n : n + 2] for n in (8, 10, 12)), strict=True):
        assert "<svg" in html(handle)
        assert "<div" in html(findings)
        assert "srcdoc=" in html(report)


def test_the_run_and_the_calibration_are_cards(outputs: list[list[Any]]) -> None:
    assert "Run run-2.db" in html(outputs[14])
    assert "Threshold" in html(outputs[15])


def test_an_interrupt_is_on_record(outputs: list[list[Any]]) -> None:
    assert errors(outputs[16]) == ["KeyboardInterrupt"]
    assert text(outputs[17]) == "KeyboardInterrupt\n"


def test_a_magic_below_ours_is_observed_and_gives_its_value(outputs: list[list[Any]]) -> None:
    assert "Wall time" in text(outputs[19])
    assert "was observed" in html(outputs[19])
    assert [o.data["text/plain"] for o in outputs[19] if o.output_type == "execute_result"] == [
        "42"
    ]
    assert text(outputs[20]) == "60\n"
