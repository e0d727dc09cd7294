"""What pyproject.toml cannot say: the C extensions, for Python's stable ABI.

`kernels._read` measures for PyTorch, `jax._xla` for JAX on a CPU: the same core, built into each,
since neither module may import the other's framework. One build serves every CPython from
3.10 on and every processor of its family: the instruction set is chosen when it runs.

A build without a C compiler fails and says so. ``STEADYGRAD_PURE=1`` asks for a pure wheel, which
is named as one (py3-none-any), and in which plain torch and plain XLA serve. On Windows the
core is left out on purpose: it needs GNU C and POSIX threads.
"""

import os
import runpy
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

PURE = sys.platform == "win32" or os.environ.get("STEADYGRAD_PURE") == "1"
PACKAGE = Path("src/steadygrad")

KERNELS = "src/steadygrad/kernels/"
FACE = ("read", "gate", "stamped", "terms", "quiet", "clips")
CORE = (
    "core",
    "others",
    "samples",
    "sums",
    "loops_avx512",
    "loops_avx2",
    "loops_neon",
    "loops_portable",
)
FINGERPRINT = runpy.run_path(str(PACKAGE / "fingerprint.py"))
SOURCES = FINGERPRINT["of_sources"](PACKAGE)

# No contraction: a multiply-add fused by one compiler and not by another changes bits.
# No debug information: it is four fifths of the file.
COMPILE = ["-O3", "-g0", "-std=gnu11", "-ffp-contract=off", "-pthread"]
LINK = ["-pthread", *([] if sys.platform == "darwin" else ["-Wl,-s"])]


class BuildOrSayWhy(build_ext):
    """Compiles, or ends with what to type."""

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except Exception as error:
            raise SystemExit(
                f"steadygrad: {ext.name} could not be compiled ({error}).\n"
                "Install a C compiler (Debian: apt-get install gcc python3-dev), or install "
                "without the kernel,\nwhich makes measuring on the CPU slower: "
                "STEADYGRAD_PURE=1 pip install steadygrad"
            ) from error


def extension(name: str, *face: str) -> Extension:
    """The core under one framework's face."""
    return Extension(
        name,
        sources=[*face, *(f"{KERNELS}{part}.c" for part in CORE)],
        depends=[path.as_posix() for path in FINGERPRINT["source_files"](PACKAGE)],
        define_macros=[("Py_LIMITED_API", "0x030A0000"), ("SG_SOURCES", f'"{SOURCES}"')],
        extra_compile_args=COMPILE,
        extra_link_args=LINK,
        py_limited_api=True,
    )


EXTENSIONS = [
    extension("steadygrad.kernels._read", *(f"{KERNELS}_{part}.c" for part in FACE)),
    extension("steadygrad.jax._xla", "src/steadygrad/jax/_xla.c"),
]

setup(
    ext_modules=[] if PURE else EXTENSIONS,
    cmdclass={"build_ext": BuildOrSayWhy},
    options={} if PURE else {"bdist_wheel": {"py_limited_api": "cp310"}},
)
