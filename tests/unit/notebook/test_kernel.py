"""In a real kernel: a cell that is run twice, cards, the report inside, an interrupt on record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

SETUP = """\
import torch, steadygrad, steadygrad.torch as sg
torch.manual_seed(0)
model = torch.nn.Linear(4, 1)
"""
TRAIN = """\
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
steady = sg.attach(optimizer, clip="norm:1.0", model=model, run="run.db")
for _ in range(60):
    optimizer.zero_grad()
    model(torch.randn(8, 4)).pow(2).mean().backward()
    optimizer.step()
steady
"""
INTERRUPTED = TRAIN.replace(
    "    optimizer.step()", "    optimizer.step()\n    raise KeyboardInterrupt"
)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    """The outputs of each cell of one notebook."""
    folder = tmp_path_factory.mktemp("notebook")
    cells = [
        SETUP,
        TRAIN,
        TRAIN,  # the commonest gesture
        "print(len(steady.run), len(steadygrad.open_run('run.db')))\nsteady.run",
        "steady.diagnose()",
        "steady.calibrate()",
        "steady.report()",
        INTERRUPTED,
        "print(steadygrad.open_run('run-3.db').info['exit'])",
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
    return [cell.outputs for cell in notebook.cells]


def html(cell: list[Any]) -> str:
    return "".join(o.data.get("text/html", "") for o in cell if "data" in o)


def text(cell: list[Any]) -> str:
    return "".join(o.text for o in cell if o.output_type == "stream")


def test_a_cell_runs_twice_and_says_where_it_records(outputs: list[list[Any]]) -> None:
    assert not [o for cell in outputs[:7] for o in cell if o.output_type == "error"]
    assert "run.db exists; this run is recorded in run-2.db" in text(outputs[2])
    assert text(outputs[3]) == "60 60\n"


def test_the_handle_the_run_and_the_findings_are_cards(outputs: list[list[Any]]) -> None:
    assert "steps <b>60</b>" in html(outputs[1])
    assert "Run run-2.db" in html(outputs[3])
    assert "<div" in html(outputs[4])
    assert "Threshold" in html(outputs[5])


def test_the_report_is_inside_the_notebook(outputs: list[list[Any]]) -> None:
    assert "srcdoc=" in html(outputs[6])


def test_an_interrupt_is_on_record(outputs: list[list[Any]]) -> None:
    assert [o.ename for o in outputs[7] if o.output_type == "error"] == ["KeyboardInterrupt"]
    assert text(outputs[8]) == "KeyboardInterrupt\n"
