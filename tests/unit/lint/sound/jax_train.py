import optax

optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
accumulated = optax.MultiSteps(optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)), 4)
