"""What a compiled Keras model's loss takes, and what the model's last layer gives."""

from __future__ import annotations

import keras

from steadygrad.runlog.info import LoopFacts

_CROSS_ENTROPIES = (
    "binary_crossentropy",
    "categorical_crossentropy",
    "sparse_categorical_crossentropy",
    "binary_focal_crossentropy",
    "categorical_focal_crossentropy",
)
_PROBABILITIES = ("softmax", "sigmoid")


def criterion_of(model: keras.Model) -> LoopFacts:
    """Facts of the loop: which cross-entropy is meant, and a last layer that does not suit it.

    Args:
        model: compiled and built, with one output and one loss.

    Returns:
        ``criterion``, the function's name, and ``logits`` as of PyTorch's graphs; empty where the
        loss is another, or the last layer is not known.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        >>> model.compile(loss="sparse_categorical_crossentropy")
        >>> criterion_of(model)["logits"]
        {'loss': 'sparse_categorical_crossentropy', 'before': 'linear'}
    """
    name, takes_logits = _cross_entropy(getattr(model, "loss", None))
    if not name:
        return {}
    last = _last_activation(model)
    wrong = last in _PROBABILITIES if takes_logits else last == "linear"
    return {"criterion": name, "logits": {"loss": name, "before": last} if wrong else None}


def _cross_entropy(loss: object) -> tuple[str, bool]:
    """The function's name, and whether it takes logits; empty where it is no cross-entropy."""
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    function = getattr(loss, "fn", loss)  # a loss object has one inside
    name = getattr(function, "__name__", "")
    if name not in _CROSS_ENTROPIES:
        return "", False
    return name, bool(getattr(loss, "from_logits", False))


def _last_activation(model: keras.Model) -> str:
    """The name of the activation that ends the model; empty where nobody can say."""
    outputs = getattr(model, "outputs", None)
    if not isinstance(outputs, list) or len(outputs) != 1:
        return ""
    history = getattr(outputs[0], "_keras_history", None)
    layer = getattr(history, "operation", None)
    if isinstance(layer, keras.Model):
        return _last_activation(layer)
    if isinstance(layer, keras.layers.Softmax):
        return "softmax"
    activation = getattr(layer, "activation", None)
    return str(getattr(activation, "__name__", ""))
