"""What pyproject.toml cannot say: the C extensions, optional, for Python's stable ABI.

`kernels._read` measures for PyTorch, `jax._xla` for JAX on a CPU: the same core, built into each,
since neither module may import the other's framework. One build serves every CPython from
3.10 on and every processor of its family: the instruction set is chosen when it runs. Where
no compiler is found the package installs without them, and plain torch and plain XLA serve.
"""

import sys

from setuptools import Extension, setup

KERNELS = "src/steadygrad/kernels/"
CORE = (
    "core",
    "others",
    "loops_avx512",
    "loops_avx2",
    "loops_neon",
    "loops_portable",
)
HEADERS = (
    "core",
    "parts",
    "half",
    "loops",
    "isa_avx512",
    "isa_avx2",
    "isa_neon",
    "isa_portable",
)

# No contraction: a multiply-add fused by one compiler and not by another changes bits.
FLAGS = [] if sys.platform == "win32" else ["-O3", "-std=gnu11", "-ffp-contract=off", "-pthread"]


def extension(name: str, face: str) -> Extension:
    """The core under one framework's face."""
    return Extension(
        name,
        sources=[face, *(f"{KERNELS}{part}.c" for part in CORE)],
        depends=[f"{KERNELS}{header}.h" for header in HEADERS],
        define_macros=[("Py_LIMITED_API", "0x030A0000")],
        extra_compile_args=FLAGS,
        extra_link_args=[] if sys.platform == "win32" else ["-pthread"],
        py_limited_api=True,
        optional=True,
    )


setup(
    ext_modules=[
        extension("steadygrad.kernels._read", f"{KERNELS}_read.c"),
        extension("steadygrad.jax._xla", "src/steadygrad/jax/_xla.c"),
    ],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
