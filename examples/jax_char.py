"""A character-level recurrent model in JAX and optax, trained on the standard library's source."""

import argparse
import functools
import sysconfig
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import steadygrad.jax as sg

MODULES = ["argparse", "ast", "dataclasses", "functools", "heapq", "inspect", "shutil", "textwrap"]
SIZE, LENGTH, BATCH, WIDTH = 128, 64, 16, 128


def load():
    """The source of some modules as ASCII codes."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    text = "\n".join((folder / f"{name}.py").read_text(encoding="utf-8") for name in MODULES)
    return np.array([code for code in text.encode("utf-8") if code < SIZE], np.int32)


def initial(key):
    """Weights of an embedding, a tanh recurrence and a linear head."""
    shapes = {"embed": (SIZE, WIDTH), "inward": (WIDTH, WIDTH), "across": (WIDTH, WIDTH)}
    shapes["head"] = (WIDTH, SIZE)
    keys = jax.random.split(key, len(shapes))
    pairs = zip(shapes.items(), keys, strict=True)
    return {name: jax.random.normal(k, shape) / shape[0] ** 0.5 for (name, shape), k in pairs}


def loss_of(params, codes, targets):
    """Mean cross-entropy of the next character."""
    inputs = params["embed"][codes] @ params["inward"]

    def step(state, x):
        state = jnp.tanh(x + state @ params["across"])
        return state, state

    _, states = jax.lax.scan(step, jnp.zeros((codes.shape[0], WIDTH)), inputs.swapaxes(0, 1))
    logits = states.swapaxes(0, 1) @ params["head"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--clip", default="norm:1.0")
    parser.add_argument("--run", help="where to record the run")
    args = parser.parse_args()

    params = initial(jax.random.key(args.seed))
    optimizer = sg.guard(optax.adam(args.lr), clip=args.clip, details=True)
    state = optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params, state, codes, targets):
        loss, grads = jax.value_and_grad(loss_of)(params, codes, targets)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    codes, rng = load(), np.random.default_rng(args.seed)
    info = {"seed": args.seed, "policy": args.clip}
    run = sg.Recorder(args.run, params, info=info) if args.run else None
    clipped = 0
    for _ in range(args.steps):
        starts = rng.integers(0, len(codes) - LENGTH - 1, BATCH)
        rows = np.stack([codes[start : start + LENGTH + 1] for start in starts])
        params, state, loss = train_step(params, state, rows[:, :-1], rows[:, 1:])
        clipped += state.clip.action == 1
        if run:
            sg.record(run, state, loss, lr=args.lr)
    if run:
        run.close()
    print(f"last loss {float(loss):.4f}, clip rate {int(clipped) / args.steps:.2f}")


if __name__ == "__main__":
    main()
