"""What the Keras examples share: text from the standard library's source, and training."""

import argparse
import sysconfig
from pathlib import Path

import keras
import numpy as np

import steadygrad.keras as sg

MODULES = ["argparse", "ast", "dataclasses", "functools", "heapq", "inspect", "shutil", "textwrap"]
SIZE, LENGTH, BATCH = 128, 64, 16


def stretches(count, seed):
    """Random stretches of source as codes, and the same one character on."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    text = "\n".join((folder / f"{name}.py").read_text(encoding="utf-8") for name in MODULES)
    codes = np.array([code for code in text.encode("utf-8") if code < SIZE], "int32")
    starts = np.random.default_rng(seed).integers(0, len(codes) - LENGTH - 1, count)
    rows = np.stack([codes[start : start + LENGTH + 1] for start in starts])
    return rows[:, :-1], rows[:, 1:]


def train(make_model, description):
    """Train a model as the command line says; print its last loss and clip rate."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--clip", default="norm:1.0")
    parser.add_argument("--run", help="where to record the run")
    args = parser.parse_args()

    keras.utils.set_random_seed(args.seed)
    model = make_model()
    optimizer = keras.optimizers.Adam(args.lr)
    steady = sg.attach(optimizer, clip=args.clip, run=args.run)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    codes, targets = stretches(args.steps * BATCH, args.seed)
    monitor = sg.GradientMonitor(steady)
    seen = model.fit(codes, targets, batch_size=BATCH, verbose=0, callbacks=[monitor])
    print(f"mean loss {seen.history['loss'][-1]:.4f}, clip rate {steady.clip_rate:.2f}")
    steady.detach()
