"""One of two workers of MultiWorkerMirroredStrategy, with a loop of its own; prints a JSON line."""

import json

import keras
import numpy as np
import tensorflow as tf

import steadygrad.tensorflow as sg

MAX_NORM, RATE, STEPS = 0.5, 0.125, 3


def main() -> None:
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    rank = strategy.cluster_resolver.task_id
    with strategy.scope():
        weight = keras.Variable(np.ones((3, 2), np.float32))
        optimizer = keras.optimizers.SGD(RATE)
        optimizer.build([weight])

    def on_replica(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((x @ weight.value - y) ** 2)
        grads = tape.gradient(loss, [weight.value])
        grads = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, grads)
        clipped, norm = sg.clip_by_global_norm(grads, MAX_NORM)
        # Keras sums over the workers what it is given
        optimizer.apply([grad / strategy.num_replicas_in_sync for grad in clipped], [weight])
        return norm

    @tf.function
    def step(x, y):
        return strategy.run(on_replica, args=(x, y))

    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(8, n)).astype(np.float32) for n in (3, 2))
    mine = slice(4 * rank, 4 * rank + 4)
    norms = [float(step(tf.constant(x[mine]), tf.constant(y[mine]))) for _ in range(STEPS)]
    print(json.dumps({"norms": norms, "weight": np.asarray(weight).tolist()}))


if __name__ == "__main__":
    main()
