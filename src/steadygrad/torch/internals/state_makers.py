"""Steps that only make an optimizer's state, so that a checkpoint has where to go.

`get_state_dict` and `set_state_dict` of `torch.distributed.checkpoint.state_dict` have an optimizer
without state take a step with gradients of zeros and a learning rate of 0. It is none of the
training's: a norm of 0 in an adaptive method's memory would be wrong for many steps.
"""

from __future__ import annotations

import sys

STATE_MAKERS = "torch.distributed.checkpoint.state_dict"
"""The module whose functions take such steps; where it is not loaded, nobody does."""


def only_makes_state() -> bool:
    """Whether the step under way is such a one; looks at the callers.

    Example:
        >>> only_makes_state()
        False
    """
    maker = getattr(sys.modules.get(STATE_MAKERS), "_init_optim_state", None)
    code = getattr(maker, "__code__", None)
    frame = sys._getframe(1) if code is not None else None
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None
