"""The tutorial notebooks in a real kernel, every cell run twice in a row."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parent.parent.parent / "examples" / "notebooks"


def run_twice(name: str, folder: Path) -> list[list[Any]]:
    """Outputs of the second run of each cell of code; an error in either is raised."""
    notebook = nbformat.read(NOTEBOOKS / name, 4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    twice = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell.source) for cell in cells for _ in range(2)]
    )
    NotebookClient(
        twice, timeout=200, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    return [cell.outputs for cell in twice.cells[1::2]]


def shown(outputs: list[Any]) -> str:
    return "".join(
        o.data.get("text/html", o.data.get("text/plain", "")) for o in outputs if "data" in o
    )


def test_the_exploding_rnn(tmp_path: Path) -> None:
    _, observed, run, findings, _, handle, calibration, report = run_twice(
        "exploding_rnn.ipynb", tmp_path
    )
    assert "SG204 error" in shown(observed)
    assert "Cell In[4] was observed" in shown(observed)
    assert "Run exploding.db" in shown(run)
    assert "error" in shown(findings)
    assert "auto" in shown(handle)
    assert "SG2" not in shown(handle)
    assert "Threshold" in shown(calibration)
    assert "srcdoc=" in shown(report)


def test_finding_a_nan(tmp_path: Path) -> None:
    _, observed, mended, findings, source = run_twice("finding_a_nan.ipynb", tmp_path)
    assert "SG1" in shown(observed)
    line = re.search(r"at Cell In\[2\], line (\d+): return self.out\(\(h - mean\)", shown(observed))
    assert line is not None
    cells = [c.source for c in nbformat.read(NOTEBOOKS / "finding_a_nan.ipynb", 4).cells]
    assert "variance.sqrt()" in cells[1].splitlines()[int(line[1]) - 1]
    assert "Row 5 of the batch" in shown(observed)
    assert "True" in shown(mended)
    assert "SG1" not in shown(findings)
    assert "variance.sqrt()" in shown(source)


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_no_output_is_kept_in_the_repository(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert not [cell for cell in notebook.cells if cell.get("outputs")]
