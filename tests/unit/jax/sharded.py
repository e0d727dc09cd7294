"""Run in a process with several host devices: prints one JSON line of what was seen."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import steadygrad.jax as sg


def main() -> None:
    devices = int(sys.argv[1])
    mesh = Mesh(np.array(jax.devices()), ("x",))
    rng = np.random.default_rng(0)
    host = {
        "split": rng.standard_normal((devices * 3000, 8)).astype(np.float32) * 1e20,
        # as heavy as the split leaf: counted once a device, it would be seen
        "whole": rng.standard_normal((devices * 3000, 8)).astype(np.float32) * 1e20,
    }
    truth = float(np.sqrt(sum(np.sum(np.square(v.astype(np.float64))) for v in host.values())))
    specs = {"split": P("x"), "whole": P()}
    tree = {k: jax.device_put(v, NamedSharding(mesh, specs[k])) for k, v in host.items()}
    tx = sg.guard(optax.sgd(1.0), clip="norm:1.0")
    state = tx.init(tree)
    _, automatic = jax.jit(tx.update)(tree, state, tree)
    manual = {}
    for checked in (True, False):
        axes = "x" if checked else {"split": "x"}
        part = sg.clip("norm:1.0", axis_name=axes)

        def inside(grads, part=part):
            local = {"split": jnp.zeros_like(grads["split"]), "whole": grads["whole"]}
            updates, seen = part.update(grads, part.init(local))
            return updates, seen.norm, seen.coef

        run = jax.jit(
            jax.shard_map(
                inside, mesh=mesh, in_specs=(specs,), out_specs=(specs, P(), P()), check_vma=checked
            )
        )
        updates, norm, _ = run(tree)
        after = float(
            np.sqrt(sum(np.sum(np.square(np.asarray(v, np.float64))) for v in updates.values()))
        )
        manual[str(checked)] = [float(norm) / truth - 1, after - 1]
    guarded = {}
    for checked in (True, False):
        axes = "x" if checked else {"split": "x"}
        tx = sg.guard(optax.adam(0.1), clip="norm:1.0", axis_name=axes)

        def train(grads, tx=tx):
            weights = jax.tree.map(jnp.zeros_like, grads)
            updates, seen = tx.update(grads, tx.init(weights), weights)
            return updates, seen.clip.norm, seen.clip.action

        run = jax.jit(
            jax.shard_map(
                train, mesh=mesh, in_specs=(specs,), out_specs=(specs, P(), P()), check_vma=checked
            )
        )
        _, norm, action = run(tree)
        broken = {**host, "split": np.where(np.arange(8) == 7, np.nan, host["split"])}
        broken["split"][:-1] = 1.0  # on the last device alone
        moved, _, skipped = run(
            {k: jax.device_put(v, NamedSharding(mesh, specs[k])) for k, v in broken.items()}
        )
        still = all(not np.any(np.asarray(v)) for v in moved.values())
        guarded[str(checked)] = [float(norm) / truth - 1, int(action), int(skipped), still]
    print(
        json.dumps(
            {
                "devices": jax.device_count(),
                "auto": float(automatic.clip.norm) / truth - 1,
                "manual": manual,
                "guarded": guarded,
            }
        )
    )


if __name__ == "__main__":
    main()
