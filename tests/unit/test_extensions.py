"""A compiled part that is missing or stale is told from a fresh one, and the user is told."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import steadygrad
from steadygrad import extensions, fingerprint
from steadygrad.cli import group
from steadygrad.report.page import facts

PACKAGE = Path(steadygrad.__file__).parent


def python(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(PACKAGE, tmp_path / "steadygrad", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_the_extensions_of_this_install_are_built_from_these_sources() -> None:
    assert extensions.install_state() == "built"
    pytest.importorskip("torch")  # `make test-core` has neither
    pytest.importorskip("jax")
    built_from = fingerprint.of_sources(PACKAGE)
    assert built_from == extensions.load(extensions.READ).BUILT_FROM
    assert built_from == extensions.load(extensions.XLA).BUILT_FROM


MEASURE = (
    "import torch, steadygrad.torch as sg; from steadygrad import extensions; "
    "from steadygrad.kernels import native; p = torch.nn.Parameter(torch.zeros(2)); "
    "p.grad = torch.tensor([3.0, 4.0]); "
    "print(float(sg.clip_grad_norm_([p], 1.0)), native.AVAILABLE, extensions.install_state())"
)


def test_an_extension_of_other_sources_is_told(copy: Path) -> None:
    look = "from steadygrad import extensions; print(extensions.install_state())"
    assert python(look, copy).split() == ["built"]
    for source in ("_version.py", "kernels/core.c", "kernels/half.h", "jax/_xla.c"):
        path = copy / "steadygrad" / source
        sound = path.read_text()
        path.write_text(sound.replace("0", "1", 1))
        assert python(look, copy).split() == ["stale"], source
        path.write_text(sound)


def test_a_stale_extension_is_not_used(copy: Path) -> None:
    pytest.importorskip("torch")
    (copy / "steadygrad/kernels/another.h").touch()
    assert python(MEASURE, copy).split() == ["5.0", "False", "stale"]


def test_a_missing_extension_is_done_without(copy: Path) -> None:
    pytest.importorskip("torch")
    for path in (copy / "steadygrad").glob("*/_*.so"):
        path.unlink()
    assert python(MEASURE, copy).split() == ["5.0", "False", "missing"]


def test_info_and_the_report_say_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    assert extensions.REBUILD not in CliRunner().invoke(group, ["info"]).output
    monkeypatch.setattr(extensions, "install_state", lambda: "missing")
    said = CliRunner().invoke(group, ["info"])
    assert said.exit_code == 0
    assert extensions.REBUILD in said.output
    run = {"info": {"kernel": "missing"}, "optimizers": []}
    assert extensions.REBUILD in dict(facts(run))["Kernel"]
    assert "Kernel" not in dict(facts({"info": {"kernel": "built"}, "optimizers": []}))
    monkeypatch.setattr(sys, "platform", "win32")  # where no compiler helps
    assert extensions.REBUILD not in extensions.advice("missing") != ""
