"""A clip that is exported and called in another process, as docs/jax.md says how."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import steadygrad.jax as sg

LOAD = """
import sys
import jax, jax.numpy as jnp
import steadygrad.jax as sg
sg.global_norm([jnp.ones(2)])  # the use that makes the custom calls known
step = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
print([g.tolist() for g in step.call([jnp.array([3.0, 0.0]), jnp.array([4.0])])])
"""


def test_an_exported_clip_runs_in_another_process(tmp_path):
    tx = sg.clip("norm:1.0")
    step = jax.jit(lambda grads: tx.update(grads, tx.init(grads))[0])
    grads = [jnp.zeros(2), jnp.zeros(1)]
    with pytest.raises(ValueError, match="steadygrad_read"):
        jax.export.export(step)(grads)
    known = [
        jax.export.DisabledSafetyCheck.custom_call(f"steadygrad_{name}")
        for name in ("read", "scale")
    ]
    (tmp_path / "step").write_bytes(
        jax.export.export(step, disabled_checks=known)(grads).serialize()
    )
    done = subprocess.run(
        [sys.executable, "-c", LOAD, tmp_path / "step"], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "[[0.6000000238418579, 0.0], [0.800000011920929]]\n", done.stderr
