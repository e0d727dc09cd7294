"""Run in a process with several host devices: prints one JSON line of what was seen."""

import json
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import steadygrad.jax as sg


def put(host, specs, mesh):
    """Arrays over all devices, of all processes."""
    return {
        key: jax.make_array_from_callback(
            value.shape, NamedSharding(mesh, specs[key]), lambda index, value=value: value[index]
        )
        for key, value in host.items()
    }


def main() -> None:
    devices = int(sys.argv[1])
    if len(sys.argv) > 2:  # one of two processes that train together
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(sys.argv[3], 2, int(sys.argv[2]))
    mesh = Mesh(np.array(jax.devices()), ("x",))
    rng = np.random.default_rng(0)
    host = {
        "split": rng.standard_normal((devices * 3000, 8)).astype(np.float32) * 1e20,
        # as heavy as the split leaf: counted once a device, it would be seen
        "whole": rng.standard_normal((devices * 3000, 8)).astype(np.float32) * 1e20,
    }
    truth = float(np.sqrt(sum(np.sum(np.square(v.astype(np.float64))) for v in host.values())))
    specs = {"split": P("x"), "whole": P()}
    tree = put(host, specs, mesh)
    plain = None
    if len(sys.argv) > 2:  # a step that knows nothing of steadygrad
        usual = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))
        small = put({key: value / 1e20 for key, value in host.items()}, specs, mesh)
        updates, _ = jax.jit(usual.update)(small, usual.init(small), small)
        plain = float(jax.jit(sg.global_norm)(updates)) - 1
    tx = sg.guard(optax.sgd(1.0), clip="norm:1.0")
    state = tx.init(tree)
    _, automatic = jax.jit(tx.update)(tree, state, tree)
    if len(sys.argv) > 2:  # all are given the same path, and the first writes it
        with sg.Recorder(os.environ["RUN"], tree) as run:
            sg.record(run, automatic, params=tree)
    manual = {}
    for checked in (True, False) if len(sys.argv) == 2 else ():
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
        after = float(jax.jit(sg.global_norm)(updates))
        manual[str(checked)] = [float(norm) / truth - 1, after - 1]
    guarded = {}
    for checked in (True,) if len(sys.argv) == 2 else (True, False):
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
        moved, _, skipped = run(put(broken, specs, mesh))
        still = all(not np.any(v.addressable_data(0)) for v in moved.values())
        guarded[str(checked)] = [float(norm) / truth - 1, int(action), int(skipped), still]
    print(
        json.dumps(
            {
                "devices": jax.device_count(),
                "auto": float(automatic.clip.norm) / truth - 1,
                "plain": plain,
                "truth": truth,
                "manual": manual,
                "guarded": guarded,
            }
        )
    )


if __name__ == "__main__":
    main()
