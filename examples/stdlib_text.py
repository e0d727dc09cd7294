"""Text to learn from that every machine with Python has: the standard library's own source."""

import sysconfig
from pathlib import Path

import torch

MODULES = ["argparse", "ast", "dataclasses", "functools", "heapq", "inspect", "shutil", "textwrap"]
SIZE = 128


def load():
    """The source of some modules as one tensor of ASCII codes."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    text = "\n".join((folder / f"{name}.py").read_text(encoding="utf-8") for name in MODULES)
    codes = [code for code in text.encode("utf-8") if code < SIZE]
    return torch.tensor(codes, dtype=torch.long)


def batches(codes, steps, batch=16, length=64):
    """Random stretches of text and the same one character on, `steps` times."""
    for _ in range(steps):
        starts = torch.randint(0, len(codes) - length - 1, (batch,))
        rows = torch.stack([codes[start : start + length + 1] for start in starts])
        yield rows[:, :-1], rows[:, 1:]
