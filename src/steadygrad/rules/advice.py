"""Fixes as code: one snippet a framework, with this run's numbers in it."""

from __future__ import annotations

import math

import numpy as np

from steadygrad.robust import median
from steadygrad.rules.evidence.loop import first_pace, optimizer_class
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import number

ABSURD = 1e6
"""A norm that is no guide to any threshold; so is its inverse."""

USUAL_PACE = 0.01
"""Part of their size by which a step may move weights: 1e-4 to 1e-1 is usual."""

_PREFIX = {
    "torch": "import steadygrad.torch as sg\n",
    "keras": "import steadygrad.keras as sg\n",
    "jax": "import steadygrad.jax as sg\n",
}


def code(view: View, *, torch: str, keras: str, jax: str) -> str:
    """The snippet for this run's framework; TensorFlow reads Keras's.

    Args:
        view: the run.
        torch: the fix for PyTorch.
        keras: the fix for Keras and TensorFlow.
        jax: the fix for JAX with optax.

    Returns:
        One of the three, with the import of what it calls ``sg``.
    """
    snippet = {"torch": torch, "jax": jax}.get(view.framework, keras)
    needs = "sg." in snippet and " as sg" not in snippet
    prefix = _PREFIX.get(view.framework, _PREFIX["keras"]) * needs
    return prefix + _OPTIMIZER * (_is_by_hand(view) and "optimizer" in snippet) + snippet


_OPTIMIZER = (
    "optimizer = torch.optim.SGD(model.parameters(), lr=lr)\n"
    "# optimizer.step() takes the place of the update by hand\n"
)


def _is_by_hand(view: View) -> bool:
    return view.framework == "torch" and optimizer_class(view) == "by hand"


def keeping_weights(view: View) -> str:
    """Code that drops steps with NaN or inf, and clips nothing.

    Args:
        view: the run.

    Returns:
        The snippet, import included.
    """
    return code(
        view,
        torch='sg.attach(optimizer, clip="none", on_nonfinite="skip", model=model)',
        keras='sg.attach(optimizer, clip="none", on_nonfinite="skip")',
        jax='optimizer = sg.guard(optimizer, clip="none", on_nonfinite="skip")',
    )


def jax_stops_at_nan() -> str:
    """Have JAX stop at the operation that makes a NaN."""
    return (
        "jax.config.update('jax_debug_nans', True)  # stops at the operation\n"
        "jax.config.update('jax_disable_jit', True)  # in nnx.jit, eqx.filter_jit, too; slow\n"
    )


def jax_weights(view: View, initializer: str) -> str:
    """JAX code that draws a layer's weights, in the words of the library that holds them.

    Args:
        view: the run; Flax calls its matrices kernels, and Equinox's have their outputs first.
        initializer: its name in `jax.nn.initializers`.

    Returns:
        The snippet.
    """
    init = f"init = jax.nn.initializers.{initializer}()\n"
    if _flax(view):
        return (
            init + "nn.Dense(n, kernel_init=init)"
            "  # of nnx: nnx.Linear(m, n, kernel_init=init, rngs=rngs)"
        )
    if "weight" in _leaves(view):
        return (
            init + "weight = init(key, layer.weight.shape[::-1]).T\n"
            "layer = eqx.tree_at(lambda layer: layer.weight, layer, weight)"
        )
    return init + "w = init(key, (inputs, outputs))  # each matrix, with a key of its own"


def jax_frozen(note: str, word: str) -> str:
    """JAX code that leaves some weights as they are.

    Args:
        note: what they are meant to do, as a comment begins.
        word: what they are called in it.

    Returns:
        The snippet.
    """
    return (
        f"# {note}; labels has the shape of params, with a word for each leaf:\n"
        f'kinds = {{"train": optimizer, "{word}": optax.set_to_zero()}}\n'
        "optimizer = optax.multi_transform(kinds, labels)"
    )


def jax_recurrent(view: View, flax: str) -> str:
    """JAX code that draws a recurrent matrix with a spectral radius of 1.

    Args:
        view: the run.
        flax: name of Flax's cell.

    Returns:
        The snippet.
    """
    if _flax(view):
        return f"nn.{flax}(n, recurrent_kernel_init=jax.nn.initializers.orthogonal())"
    return "w = jax.nn.initializers.orthogonal()(key, w.shape)  # the recurrent matrix"


def _flax(view: View) -> bool:
    return "kernel" in _leaves(view)


def _leaves(view: View) -> set[str]:
    return {tensor.name.rpartition("/")[2] for tensor in view.tensors}


def in_model(name: str) -> str:
    """Code for a parameter of a PyTorch model, from its name there.

    Example:
        >>> in_model("rnn.weight_hh_l0"), in_model("layers.0.weight")
        ('model.rnn.weight_hh_l0', 'model.layers[0].weight')
        >>> in_model("block-1.weight")
        'model.get_parameter("block-1.weight")'
    """
    parts = name.split(".")
    if not all(part.isidentifier() or part.isdecimal() for part in parts):
        return f'model.get_parameter("{name}")'
    return "model" + "".join(f"[{p}]" if p.isdecimal() else f".{p}" for p in parts)


def clip_code(view: View, spec: str) -> str:
    """Code that clips with a spec in this run's framework.

    Args:
        view: the run.
        spec: a clip spec, e.g. ``norm:1.0``.

    Returns:
        The snippet, import included.
    """
    in_cell = view.run.info.get("observed_by") == "cell"
    name, _, limit = spec.partition(":")
    if view.framework == "tensorflow" and name == "norm":  # steps that no attach can reach
        return (
            "import steadygrad.tensorflow as sg\n"
            f"gradients, _ = sg.clip_by_global_norm(gradients, {limit})  # before apply_gradients\n"
            f"# or, where the optimizer is one of tf_keras: Adam(lr, global_clipnorm={limit})"
        )
    return (f"# %%steadygrad --clip {spec}   does it for this cell; in code:\n" * in_cell) + code(
        view,
        torch=f'sg.attach(optimizer, clip="{spec}", model=model)',
        keras=f'sg.attach(optimizer, clip="{spec}")  # before the first step',
        jax=f'optimizer = sg.guard(optimizer, clip="{spec}")',
    )


def hold_norm(view: View, *others: str, until: int | None = None, note: str = "") -> list[str]:
    """Fixes: clip by norm at a threshold for this run, then others; they lead where it gives none.

    Args:
        view: the run.
        others: further fixes, the best first.
        until: as for `recommended`.
        note: a comment on the clip.

    Returns:
        The fixes, the best first.
    """
    threshold = recommended(view, until)
    if math.isfinite(threshold):
        said = f"  # {note}" if note else ""
        return [clip_code(view, f"norm:{threshold:g}") + said, *others]
    norms = view.norm[:until][view.usable[:until]]
    return [
        *others,
        f"# no threshold yet: the ordinary norm of this run is {number(median(norms))}, which is\n"
        "# the fault and no measure; mend it, record a run that trains, and type:\n"
        "#   steadygrad calibrate run.db",
    ]


def lower_lr(view: View, factor: float | None = None) -> str:
    """Code that divides the learning rate.

    Args:
        view: the run; its median learning rate gives the number.
        factor: what to divide by; by default 10, or as many tens as bring a first step that is
            known to be longer down to a usual length.

    Returns:
        The snippet.
    """
    lr = median(view.lr)
    factor = _too_long(view) if factor is None else factor
    new = number(lr / factor) if math.isfinite(lr) and lr > 0 else f"lr / {factor:g}"
    was = f"  # was {number(lr)}" if math.isfinite(lr) and lr > 0 else ""
    if _is_by_hand(view):
        return f"lr = lr / {factor:g}"
    return code(
        view,
        torch=f'for group in optimizer.param_groups:\n    group["lr"] = {new}{was}',
        keras=f"optimizer.learning_rate = {new}{was}",
        jax=f"learning_rate = {new}{was or '  # where the optimizer is made'}",
    )


def _too_long(view: View) -> float:
    pace = first_pace(view)
    tens = math.ceil(math.log10(max(pace, USUAL_PACE) / USUAL_PACE)) if math.isfinite(pace) else 1
    return float(10 ** min(max(tens, 1), 6))


def keep_size(view: View) -> str:
    """Code that begins with matrices that neither grow nor shrink what they multiply.

    Args:
        view: the run.

    Returns:
        The snippet.
    """
    return code(
        view,
        torch="for weight in model.parameters():  # recurrent and deep ones keep a signal's size\n"
        "    if weight.dim() > 1:\n"
        "        torch.nn.init.orthogonal_(weight)",
        keras='keras.layers.Dense(n, kernel_initializer="orthogonal")',
        jax=jax_weights(view, "orthogonal"),
    )


def recommended(view: View, until: int | None = None) -> float:
    """A clipping threshold for this run: calibrated where that is possible.

    Args:
        view: the run.
        until: index of the first step that should no longer count, for runs whose
            later steps are already ruined; calibration is then not asked.

    Returns:
        A threshold over the ordinary norms; 1.0 where nothing finite was seen; NaN where what was
        seen is too large or too small to be ordinary of any training.
    """
    norms = view.norm[:until][view.usable[:until]]
    norms = norms[norms > 0]
    if not norms.size:
        return 1.0
    calibrated = _calibrated(view) if until is None and not view.several else math.nan
    usual = min(2 * median(norms), 1.5 * float(np.quantile(norms, 0.9)))
    threshold = calibrated if math.isfinite(calibrated) else float(number(usual))
    return threshold if 1 / ABSURD <= threshold <= ABSURD else math.nan


def _calibrated(view: View) -> float:
    from steadygrad.calibration.recommending import quick_threshold
    from steadygrad.errors import CalibrationError

    try:
        threshold = quick_threshold(view.run)
    except CalibrationError:
        return math.nan
    usable = isinstance(threshold, float) and math.isfinite(threshold) and threshold > 0
    return float(number(threshold)) if usable else math.nan
