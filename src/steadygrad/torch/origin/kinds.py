"""What a torch function is to the tape: told from its name, once a function."""

from __future__ import annotations

from typing import Any

PLAIN, ORDINARY, IN_PLACE, RANDOM = range(4)
"""Not written down; written down; changes its first argument; draws random numbers."""

_DRAW = """
rand randn randint randperm rand_like randn_like randint_like normal bernoulli multinomial
poisson binomial dropout alpha_dropout feature_dropout feature_alpha_dropout dropout1d dropout2d
dropout3d rrelu gumbel_softmax scaled_dot_product_attention native_dropout
multi_head_attention_forward fractional_max_pool2d fractional_max_pool3d bernoulli_ normal_
uniform_ random_ exponential_ geometric_ cauchy_ log_normal_ dropout_ rrelu_ alpha_dropout_
"""
_CHANGE = """
__setitem__ __iadd__ __isub__ __imul__ __itruediv__ __ifloordiv__ __ipow__ __imod__ __iand__
__ior__ __ixor__
"""
_RANDOM_NAMES, _IN_PLACE_NAMES = frozenset(_DRAW.split()), frozenset(_CHANGE.split())
_PLAIN_NAMES = frozenset(["backward", "detach_", "register_hook", "retain_grad"])

kind_by_function: dict[Any, int] = {}
"""Function to kind; a function that was seen to return no tensor is plain from then on."""


def kind_of(func: object) -> int:
    """The kind of a function, by its name.

    Example:
        >>> import torch
        >>> kind_of(torch.Tensor.add_) == IN_PLACE, kind_of(torch.dropout) == RANDOM
        (True, True)
    """
    name = getattr(func, "__name__", "")
    if name == "__get__":
        attribute = getattr(getattr(func, "__self__", None), "__name__", "")
        kind = PLAIN if attribute in ("grad", "_grad", "grad_fn") else ORDINARY
    elif name in _PLAIN_NAMES or name == "__set__":
        kind = PLAIN
    elif name in _RANDOM_NAMES:
        kind = RANDOM
    elif changes_its_argument(name):
        kind = IN_PLACE
    else:
        kind = ORDINARY
    kind_by_function[func] = kind
    return kind


def changes_its_argument(name: str) -> bool:
    """Whether a function of this name works in place."""
    if name == "requires_grad_":
        return False
    return name in _IN_PLACE_NAMES or (name.endswith("_") and not name.endswith("__"))
