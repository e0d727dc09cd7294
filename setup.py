"""What pyproject.toml cannot say: the C extension, optional, for Python's stable ABI.

One build serves every CPython from 3.10 on and every processor of its family: the
instruction set is chosen when it runs. Where no compiler is found the package installs
without it, and the plain torch form serves.
"""

import sys

from setuptools import Extension, setup

KERNELS = "src/steadygrad/kernels/"
SOURCES = (
    "_read",
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

setup(
    ext_modules=[
        Extension(
            "steadygrad.kernels._read",
            sources=[f"{KERNELS}{name}.c" for name in SOURCES],
            depends=[f"{KERNELS}{name}.h" for name in HEADERS],
            define_macros=[("Py_LIMITED_API", "0x030A0000")],
            extra_compile_args=FLAGS,
            extra_link_args=[] if sys.platform == "win32" else ["-pthread"],
            py_limited_api=True,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
