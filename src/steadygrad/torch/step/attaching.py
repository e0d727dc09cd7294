"""`attach`: one line that makes an optimizer measure, clip and record inside its own step."""

from __future__ import annotations

from typing import Any

import torch

from steadygrad.errors import AttachError, NoGradientsWarning, UsageError
from steadygrad.policies import NoClip
from steadygrad.policies.choice import Clip, policy_of, resolve
from steadygrad.policies.idle_groups import idle_classes, idle_patterns
from steadygrad.recovery.ladder import Ladder, parse_ladder
from steadygrad.torch.distributed.ownership import Groups
from steadygrad.torch.internals import scaler
from steadygrad.torch.internals.warn import warn_user
from steadygrad.torch.step.handle import Steady
from steadygrad.torch.step.inner import has_no_step, inner_optimizers, is_facade
from steadygrad.torch.step.naming import ModelNames, Names


def attach(
    optimizer: torch.optim.Optimizer,
    clip: Clip = "norm:1.0",
    model: torch.nn.Module | None = None,
    on_nonfinite: str | None = None,
    run: object = None,
    *,
    find_nan: bool = False,
    names: Names | None = None,
    optimizer_index: int = 0,
    process_group: Groups = None,
    recover: str | Ladder | None = None,
) -> Steady:
    """Clip, guard and record inside ``optimizer.step()``; the training loop stays as it is.

    Args:
        optimizer: any torch optimizer, or a wrapper such as Accelerate's around one.
        clip: a spec such as ``"norm:1.0"``, a policy, or ``{name pattern: spec}``; ``@Muon`` for
            a pattern means an optimizer's class, ``@group:muon`` one of its parameter groups.
        model: gives tensors their names, module types and forward order.
        on_nonfinite: what to do when gradients hold NaN or inf: ``"skip"`` the step whole
            (the default), ``"raise"``, ``"zero"`` those elements, or ``"propagate"``
            (the default of ``clip="none"``).
        run: a path for a new run file (of several ranks, rank 0 writes it), or an open
            `RunWriter`. The losses that it records are
            those on which `backward` is called, unless `Steady.observe_loss` tells others.
        find_nan: at the first non-finite gradient or loss, replay the step and warn with the
            operation, the line and the rows that made it; see `Steady.origin`.
        names: instead of a model: ``{id(parameter): name}`` or a function of the parameter.
        optimizer_index: number of this optimizer within the run.
        process_group: a `torch.distributed` group whose ranks have other parameters each
            (pipeline stages, experts): the norm is then over all of them. Or ``{name pattern:
            group}`` for some of the parameters; the others are the same on every rank.
        recover: what to do when a training is struck: ``"auto"``, ``"palm"``, rungs such as
            ``"skip:2+rollback:4"``, or a `steadygrad.recovery.Ladder`. Reads the loss and the norm
            at every step, on a device too; None does none of it.

    Returns:
        A handle: the last step's record, state for checkpoints, `detach`; a context manager.

    Raises:
        SpecError: the clip spec cannot be read.
        UsageError: another argument is wrong.
        AttachError: not an optimizer, attached already, or one that moves nothing itself.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = torch.optim.SGD([weight], lr=1.0)
        >>> with attach(optimizer, clip="norm:1.0") as steady:
        ...     weight.grad = torch.tensor([3.0, 4.0])
        ...     optimizer.step()
        >>> weight.data, steady.last.norm, steady.last.coef, steady.last.action
        (tensor([-0.6000, -0.8000]), 5.0, 0.2, 'clip')
    """
    ladder = None if recover is None else parse_ladder(recover)
    if ladder is not None and (process_group is not None or on_nonfinite == "raise"):
        raise UsageError(
            "recover= does not go with process_group= or on_nonfinite='raise': it needs one "
            "reading for all ranks, and decides itself what is done with NaN and inf"
        )
    steady = attach_unheard(
        optimizer, clip, model, on_nonfinite, run, names, optimizer_index, process_group
    )
    _warn_of_idle_groups(clip, steady, model)
    if run is not None:
        steady.hear_losses()
    if run is not None or isinstance(steady.policy, NoClip):
        steady.watch_clips()
    if find_nan:
        steady.find_nan()
    if ladder is not None:
        try:
            steady.recover(ladder, model)
        except Exception:
            steady.detach()
            raise
    return steady


def attach_unheard(
    optimizer: torch.optim.Optimizer,
    clip: Clip = "norm:1.0",
    model: torch.nn.Module | None = None,
    on_nonfinite: str | None = None,
    run: object = None,
    names: Names | None = None,
    optimizer_index: int = 0,
    process_group: Groups = None,
    observed: bool = False,
) -> Steady:
    """`attach` for a caller that tells the losses itself, through `Steady.observe_loss`.

    Args:
        optimizer: and what follows it, as `attach` has them.
        observed: the whole script is; what it has put in the place of `optimizer.step` stays there.
    """
    inner = _require_optimizer(optimizer)
    choice = resolve(clip, on_nonfinite, type(inner).__name__)
    if model is not None and names is not None:
        raise UsageError(
            "give either model= or names=, not both: each says what tensors are called"
        )
    source = names if model is None else _model_names(model)
    return Steady(
        inner,
        choice.policy,
        choice.on_nonfinite,
        run,
        source,
        optimizer_index,
        process_group,
        observed,
    )


def _warn_of_idle_groups(clip: Clip, steady: Steady, model: torch.nn.Module | None) -> None:
    """Groups that are for another optimizer, or for no name, would clip nothing without a word."""
    own = type(steady.optimizer).__name__
    for sentence in idle_classes(policy_of(clip), steady.policy, own):
        warn_user(sentence, NoGradientsWarning)
    names = steady.names if model is None else [name for name, _ in model.named_parameters()]
    plain = [name.replace("_orig_mod.", "").removeprefix("module.") for name in names]
    for sentence in idle_patterns(steady.policy, [*plain, *steady.names]):
        warn_user(sentence, NoGradientsWarning)


def _require_optimizer(optimizer: object) -> torch.optim.Optimizer:
    inner = scaler.unwrap(optimizer)
    if not isinstance(inner, torch.optim.Optimizer):
        raise AttachError(
            f"attach needs a torch optimizer, got {type(optimizer).__name__}; "
            "type steadygrad.torch.attach(optimizer, clip='norm:1.0')"
        )
    if has_no_step(inner):
        raise AttachError(
            f"this {type(inner).__name__} has no step(): it moves each weight during backward(), "
            "before the other gradients are there, so no norm of them all can be clipped. Take its "
            "own clipping (clip_grad_norm= of LOMO), or an optimizer with a step(), such as "
            "torch.optim.AdamW"
        )
    if is_facade(inner):
        raise AttachError(
            f"this {type(inner).__name__} moves no weight itself: {len(inner_optimizers(inner))} "
            "optimizers that it holds step during backward(), each before the other gradients are "
            "there, so no norm of them all can be clipped. Attach to each of those (each tensor is "
            "then clipped by its own norm), or take the optimizer that is not layer-wise, such as "
            "optim='galore_adamw' in a Trainer"
        )
    return inner


def _model_names(model: Any) -> ModelNames:
    if not isinstance(model, torch.nn.Module):
        raise UsageError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)):
        model = model.module
    return ModelNames(model)
