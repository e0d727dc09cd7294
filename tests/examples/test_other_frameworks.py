"""The Keras and JAX examples: they train, and leave a run file that the rules can read."""

from pathlib import Path

import pytest

import steadygrad

from ..workbench import Workbench

EXAMPLES = Path(__file__).parents[2] / "examples"
STEPS = 3


@pytest.mark.parametrize(
    ("script", "framework", "tensors"),
    [("jax_char", "jax", 4), ("keras_lstm", "keras", 9), ("keras_transformer", "keras", 38)],
)
def test_an_example_trains_and_records(
    script: str, framework: str, tensors: int, forked: Workbench
) -> None:
    path = forked.run_file()
    forked.environment |= {"KERAS_BACKEND": "torch", "JAX_PLATFORMS": "cpu"}
    done = forked.python(str(EXAMPLES / f"{script}.py"), "--steps", str(STEPS), "--run", path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "clip rate" in done.stdout
    run = steadygrad.open_run(path)
    assert run.info["framework"] == framework
    assert len(run.steps) == STEPS
    assert run.tensor_norms.shape == (STEPS, tensors)
    assert (run.steps.loss < 6).all()
    assert (run.steps.norm > 0).all()
    assert isinstance(steadygrad.diagnose(run), list)
