"""Losses that are told the wrong thing, beside the same losses told the right one.

A classifier of the corpus gets a head of one output and another loss: a regression on the number
of its class, or one class against the others. An autoencoder keeps its head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from architectures import Player, Task
from torch import Tensor, nn
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor], Tensor]
CLASSIFIERS = ("mlp", "cnn", "rnn", "gru", "resnet", "sets")
"""Models that give one row of outputs for a row, and whose batch is inputs and class numbers."""


def with_one_output(loss: Loss) -> Callable[[Task], None]:
    """Give a classifier a head of one output.

    Args:
        loss: of outputs ``[rows, 1]`` and class numbers ``[rows]``.

    Returns:
        What changes a task.
    """

    def build(task: Task) -> None:
        wide = [m for m in task.model.modules() if isinstance(m, nn.Linear)][-1].out_features
        whole = nn.Sequential(task.model, nn.Linear(wide, 1))
        task.model = whole
        task.players = [Player(whole, lambda b: loss(whole(b[0]), b[-1]))]

    return build


def with_loss(loss: Loss) -> Callable[[Task], None]:
    """Give an autoencoder another loss, of its outputs and its inputs."""

    def build(task: Task) -> None:
        model = task.model
        task.players = [Player(model, lambda b: loss(model(b[0]), b[-1]))]

    return build


def squared(out: Tensor, labels: Tensor) -> Tensor:
    """A regression on the number of the class, in units of its size."""
    return F.mse_loss(out, labels.float()[:, None] / 4.5 - 1)


def squared_by_hand(out: Tensor, labels: Tensor) -> Tensor:
    return (out[:, 0] - (labels.float() / 4.5 - 1)).square().mean()


def all_pairs(out: Tensor, labels: Tensor) -> Tensor:
    """Outputs of ``[rows, 1]`` against targets of ``[rows]``."""
    return F.mse_loss(out, labels.float() / 4.5 - 1)


def all_pairs_by_hand(out: Tensor, labels: Tensor) -> Tensor:
    return (out - (labels.float() / 4.5 - 1)).square().mean()


def all_pairs_reversed(out: Tensor, labels: Tensor) -> Tensor:
    """Outputs of ``[rows]`` against targets of ``[rows, 1]``."""
    return F.smooth_l1_loss(out[:, 0], labels.float()[:, None] / 4.5 - 1)


PAIRS: dict[str, Loss] = {
    "mlp": all_pairs,
    "cnn": all_pairs_by_hand,
    "rnn": all_pairs_reversed,
    "gru": all_pairs_by_hand,
    "resnet": all_pairs_reversed,
    "sets": all_pairs,
}


def one_against_the_others(out: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(out[:, 0], (labels % 2).float())


def class_numbers(out: Tensor, labels: Tensor) -> Tensor:
    """Numbers of classes where 0 and 1 are due."""
    return F.binary_cross_entropy_with_logits(out[:, 0], labels.float())


def signs(out: Tensor, labels: Tensor) -> Tensor:
    """Labels of -1 and 1, as for a hinge loss."""
    return F.binary_cross_entropy_with_logits(out[:, 0], 2.0 * (labels % 2) - 1)


def pixels_of_1(out: Tensor, images: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(out, (images + 1) / 2)


def pixels_of_255(out: Tensor, images: Tensor) -> Tensor:
    """Pixels that nothing divides."""
    return F.binary_cross_entropy_with_logits(out, 127.5 * (images + 1))


def pixels_of_mean_0(out: Tensor, images: Tensor) -> Tensor:
    """Pixels normalised for the inputs' sake, and used as targets too."""
    return F.binary_cross_entropy_with_logits(out, images)


MISTAKEN: dict[str, Loss] = {
    "mlp": class_numbers,
    "cnn": signs,
    "rnn": class_numbers,
    "gru": signs,
    "resnet": class_numbers,
    "autoencoder": pixels_of_255,
    "unet": pixels_of_mean_0,
}


def in_units(size: float, mean: float) -> Loss:
    """A regression on targets in other units: of this deviation and mean."""

    def loss(out: Tensor, labels: Tensor) -> Tensor:
        return F.mse_loss(out[:, 0], mean + size * (labels.float() / 4.5 - 1))

    return loss


def told(architecture: str, losses: dict[str, Loss]) -> Callable[[Task], None]:
    """What gives an architecture its loss of these."""
    own_head = architecture in ("autoencoder", "unet")
    return (with_loss if own_head else with_one_output)(losses[architecture])


def gates_at(value: float) -> Callable[[Task], None]:
    """What keeps the state, shut (far below 0) or open: a GRU's update, an LSTM's forget gate."""

    @torch.no_grad()
    def build(task: Task) -> None:
        for module in task.model.modules():
            if isinstance(module, nn.GRU | nn.LSTM):
                wide = module.hidden_size
                for name, bias in module.named_parameters():
                    if name.startswith("bias_hh"):
                        bias[wide : 2 * wide] = value

    return build


@torch.no_grad()
def grows(task: Task) -> None:
    """Recurrent weights of gated cells so large that states are chaotic: gradients explode."""
    for module in task.model.modules():
        if isinstance(module, nn.GRU | nn.LSTM):
            for name, weight in module.named_parameters():
                if name.startswith("weight_hh"):
                    weight.mul_(16.0)
