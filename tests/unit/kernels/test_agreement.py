"""The instruction sets against one another in plain C, here and on emulated processors.

The ARM build is made and run where a cross compiler and an emulator are installed
(Debian: gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user).
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import steadygrad

KERNELS = Path(steadygrad.__file__).parent / "kernels"
PROGRAM = Path(__file__).with_name("agreement.c")
FLAGS = ["-O1", "-std=gnu11", "-ffp-contract=off", "-pthread", "-Wall", "-Wextra", "-Werror"]
ARM = ("aarch64-linux-gnu-gcc", ["-static"], ["qemu-aarch64"], "neon")
HERE = ("cc", [], [], "portable")
BUILDS = [HERE, ARM] if shutil.which(ARM[0]) and shutil.which("qemu-aarch64") else [HERE]


@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build[0])
def test_all_instruction_sets_agree(build, tmp_path):
    compiler, flags, emulator, expected = build
    sources = [path for path in KERNELS.glob("*.c") if path.name[0] != "_"]
    built = tmp_path / "agreement"
    command = [compiler, *FLAGS, *flags, f"-I{KERNELS}", *sources, PROGRAM, "-o", built, "-lm"]
    subprocess.run(command, check=True)
    done = subprocess.run([*emulator, built], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert f"{expected} agrees" in done.stdout
    broken = subprocess.run([*emulator, built, "1"], capture_output=True, text=True, check=False)
    assert broken.returncode == 1
    assert f"{expected} DISAGREES" in broken.stdout
