"""Private names of torch that others here need, each in one place: a release breaks this file.

What stands below a tensor, a module or an optimizer (`Tensor._version`, `Module._parameters`) is
asked of the object where it is used: it is as old as torch.
"""

from __future__ import annotations

import functools
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from steadygrad.kernels.native import Same

graph_task: Callable[[], int] = torch._C._current_graph_task_id
"""The number of the backward pass at work in this thread; -1 for none."""

is_wrapped: Callable[[torch.Tensor], bool] = torch._C._functorch.is_functorch_wrapped_tensor
"""Whether a transform such as vmap has wrapped a tensor."""

unwrapped: Any = torch._C._functorch.get_unwrapped
"""The tensor inside one wrapper."""

tracing_state: Any = torch._C._get_tracing_state
"""What `torch.jit.trace` writes down; None where it does not trace."""

casts: Any = torch._C._is_any_autocast_enabled
"""Whether autocast is on, on any device."""

modes: Any = torch._C._len_torch_function_stack
"""How many function modes this thread has on its stack."""

mode_at: Any = torch._C._get_function_stack_at
"""The mode at a place of that stack, counted from below."""

push_mode: Any = torch._C._push_on_torch_function_stack
pop_mode: Any = torch._C._pop_torch_function_stack

MODULE_CALL: Any = torch.nn.Module._wrapped_call_impl
"""`Module.__call__` as torch has it."""

NORMALISATION = torch.nn.modules.batchnorm._NormBase
"""The class of layers with running statistics."""

CONVOLUTION = torch.nn.modules.conv._ConvNd
"""The class of convolutions, transposed ones included."""


def give_hooks(optimizer: torch.optim.Optimizer, called: bool = False) -> Callable[[], None]:
    """Have an optimizer call hooks around its `step`: one whose `__init__` is not torch's has none.

    Torch would put its wrapper on the class, where other optimizers of it would fail.

    Args:
        optimizer: one that calls them already stays as it is.
        called: a function of the script's that stands in the place of its `step` is known to call
            that, which calls them.

    Returns:
        A function that takes them away again.
    """
    if calls_hooks(optimizer) or (called and _calls_below(optimizer)):
        return _nothing
    missing = [name for name in _STEP_HOOKS if name not in vars(optimizer)]
    alive = weakref.ref(optimizer)  # one that is dropped is freed at once
    before: Any = vars(optimizer).get("step")  # a scheduler's
    original: Any = type(optimizer).step

    @functools.wraps(original)
    def inside(self: torch.optim.Optimizer, *args: object, **kwargs: object) -> object:
        return original(self, *args, **kwargs) if before is None else before(*args, **kwargs)

    around: Any = optimizer.profile_hook_step(inside)
    around.hooked = True  # torch's own mark

    @functools.wraps(original if before is None else before)
    def step(*args: object, **kwargs: object) -> object:
        return around(alive(), *args, **kwargs)

    step.hooked, step.__func__ = True, around  # type: ignore[attr-defined]  # a scheduler asks

    def undo() -> None:
        optimizer = alive()
        if optimizer is not None and vars(optimizer).get("step") is step:
            del optimizer.step
            if before is not None:
                vars(optimizer)["step"] = before
            for name in missing:
                delattr(optimizer, name)

    vars(optimizer).update({"step": step, **{name: OrderedDict() for name in missing}})
    return undo


def calls_hooks(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer's `step` calls hooks, by its class or by `give_hooks`."""
    there = all(name in vars(optimizer) for name in _STEP_HOOKS)
    return there and getattr(optimizer.step, "hooked", False)


def _calls_below(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the `step` of its class calls hooks, whatever stands in its place."""
    there = all(name in vars(optimizer) for name in _STEP_HOOKS)
    return there and getattr(type(optimizer).step, "hooked", False)


_STEP_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


def _nothing() -> None:
    return None


def default_device_mode() -> object:
    """The function mode by which `torch.set_default_device` works; None where it is not on."""
    return getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)


def loader_iterator() -> Any:
    """The class that a `DataLoader` iterates by."""
    return torch.utils.data.dataloader._BaseDataLoaderIter


_WORLD = getattr(getattr(torch.distributed, "distributed_c10d", None), "_world", None)
"""What knows the process groups; None where torch was built without them."""

process_group: Callable[[], object] = functools.partial(getattr, _WORLD, "_default_pg", _WORLD)
"""The group in which this process may train with others; None for none. Asked at every step."""

NO_GROUP: Same = () if _WORLD is None else ((_WORLD, "_default_pg", None),)
"""What `process_group` asks, where it gives None."""


def job_store() -> Any:
    """The store that the ranks of a job share."""
    get_store: Any = torch.distributed.distributed_c10d._get_default_store
    return get_store()


def collective_work() -> Any:
    """The class of collectives under way, whose `wait` waits for other ranks."""
    return torch._C._distributed_c10d.Work
