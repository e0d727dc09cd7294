"""Steps that the replicas of a model take together, under a strategy of `tf.distribute`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from steadygrad.tensorflow.engine import Gradient, densified


def reduced(gradients: Sequence[Gradient]) -> tuple[list[Gradient], bool]:
    """Gradients summed over the replicas: each part has a norm of its own.

    Args:
        gradients: this replica's.

    Returns:
        The sums, dense; the gradients as they are where there is but one replica. And whether
        there was anything to sum.
    """
    context = tf.distribute.get_replica_context()
    if context is None or tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return list(gradients), False
    dense = [densified(gradient) for gradient in gradients]
    return list(context.all_reduce(tf.distribute.ReduceOp.SUM, dense)), True


def unless(skip: tf.Tensor, run: Callable[[], object]) -> None:
    """Run, but where ``skip`` holds.

    Args:
        skip: 0-d bool, the same on all replicas.
        run: takes the step of one replica.
    """

    def go() -> tf.Operation:
        run()
        return tf.no_op()

    context = tf.distribute.get_replica_context()
    if context is None or not tf.distribute.has_strategy():
        tf.cond(skip, tf.no_op, go)
        return
    # of a single replica too: Keras sums its gradients by a merge, which no branch may hold

    def across(distribution: tf.distribute.Strategy, skips: tf.Tensor) -> None:
        first = distribution.experimental_local_results(skips)[0]

        def on_each() -> tf.Operation:
            distribution.extended.call_for_each_replica(run)
            return tf.no_op()

        tf.cond(first, tf.no_op, on_each)

    context.merge_call(across, args=(skip,))


def once_for_all(run: Callable[..., object], *values: tf.Tensor) -> None:
    """Run with values that are the same on all replicas, once for all of them.

    Args:
        run: called with the values.
        values: this replica's.
    """
    context = tf.distribute.get_replica_context()
    if context is None or tf.distribute.get_strategy().num_replicas_in_sync == 1:
        run(*values)
        return

    def across(distribution: tf.distribute.Strategy, *all_values: tf.Tensor) -> None:
        run(*(distribution.experimental_local_results(value)[0] for value in all_values))

    context.merge_call(across, args=values)
