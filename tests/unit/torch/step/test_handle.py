"""The handle reads its own run back, while it is recorded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import steadygrad.torch as sg
from steadygrad.errors import UsageError


def trained(run: str | None, steps: int = 60) -> sg.Steady:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    steady = sg.attach(optimizer, clip="norm:1.0", model=model, run=run)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).pow(2).mean().backward()
        optimizer.step()
    return steady


def test_what_was_just_trained_is_what_is_read(tmp_path: Path) -> None:
    with trained(str(tmp_path / "run.db")) as steady:
        assert len(steady.run) == 60
        assert steady.run.steps.norm[-1] == pytest.approx(steady.last.norm)
        assert steady.calibrate().steps > 0
        assert steady.diagnose() is not None
        page = steady.report(tmp_path / "report.html")
        assert page.read_text().lstrip().startswith("<!doctype html>")
        assert "steps <b>60</b>" in steady._repr_html_()


@pytest.mark.parametrize("read", ["run", "diagnose", "calibrate", "report"])
def test_without_a_run_it_says_what_to_type(read: str) -> None:
    with trained(None, 2) as steady:
        with pytest.raises(UsageError, match=r"run='run\.db'"):
            _ = steady.run if read == "run" else getattr(steady, read)()
        assert "run='run.db'" in steady._repr_html_().replace("&#x27;", "'")


def test_a_file_that_exists_stays_an_error_in_a_script(tmp_path: Path) -> None:
    trained(str(tmp_path / "run.db"), 1).detach()
    with pytest.raises(OSError, match="exists already"):
        trained(str(tmp_path / "run.db"), 1)
