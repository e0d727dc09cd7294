"""Observing a JAX script: `install` patches jax and optax, `observer` follows the optimizers."""
