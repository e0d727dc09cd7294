"""The Triton form: the suite of all forms in Triton's interpreter, and a real compilation.

The interpreter must be chosen before Triton is imported, hence a process of its own.
Layouts are left to the other forms' runs where host code that is tested in
tests/unit/kernels makes flat memory of them before anything is launched.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = Path(__file__).with_name("test_kernel_forms.py")
FLATTENED_BEFORE = "transposed or channels_last or offset"


@pytest.mark.timeout(900)
def test_the_suite_passes_in_the_interpreter():
    env = {**os.environ, "TRITON_INTERPRET": "1", "STEADYGRAD_TEST_FORMS": "triton"}
    # the interpreter computes both sides of a `where` in NumPy, which then warns
    quiet = ["-W", "ignore::RuntimeWarning:triton.runtime.interpreter"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *quiet]
    command += ["-k", f"not ({FLATTENED_BEFORE})", str(SUITE)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed.group(1)) > 100


POINTERS = {
    **dict.fromkeys(("pointers", "sizes", "nonfinite", "zeros"), "*i64"),
    **dict.fromkeys(("owners", "firsts", "places", "counts"), "*i32"),
    **dict.fromkeys(("units", "sums", "maxima", "norms", "max_abs", "coefs"), "*fp64"),
}
COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from steadygrad.kernels import triton_form as form, triton_kernels as kernels

POINTERS = {pointers!r}
target = GPUTarget({backend!r}, {arch!r}, {warp})

def compile(kernel, **constants):
    kinds = {{**POINTERS, **dict.fromkeys(constants, "constexpr")}}
    signature = {{name: kinds.get(name, "i32") for name in kernel.arg_names}}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    return triton.compile(source, target=target, options=form.LAUNCH)

sizes = dict(CHUNK=form.CHUNK, BLOCK=form.BLOCK)
for kind, is_complex in form.PARTS.values():
    built = compile(kernels.multiply, kind=kind, **sizes)
    assert {binary!r} in built.asm
    compile(kernels.measure, kind=kind, COMPLEX=is_complex, NORM=2, p=2.0, **sizes)
compile(kernels.measure, kind=kind, COMPLEX=False, NORM=0, p=0.7, **sizes)
for norm in (0, 1, 2):
    built = compile(kernels.join, NORM=norm, p=0.7, BLOCK=form.BLOCK)
print("float64" if "f64" in built.asm["ttir"] else "")
"""


@pytest.mark.parametrize(
    ("backend", "arch", "warp", "binary"),
    [("cuda", 90, 32, "cubin"), ("hip", "gfx942", 64, "hsaco")],
)
def test_the_kernels_compile_for_gpus_that_are_not_here(backend, arch, warp, binary, tmp_path):
    code = COMPILE.format(pointers=POINTERS, backend=backend, arch=arch, warp=warp, binary=binary)
    env = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    env.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.strip() == "float64"
