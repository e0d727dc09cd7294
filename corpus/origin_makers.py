"""Ways to make a NaN or inf, each with the line that does it.

A maker takes features and turns them into features of the same shape; a loss takes
predictions and targets. With ``edge`` it meets the value that breaks it. The comment
``# origin`` stands on the one line that is to be named. Makers are written as people
write them, so that there are steps before and after that line.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

TOKEN = "# origin"

MAKERS: dict[str, Callable[..., torch.Tensor]] = {}
LOSSES: dict[str, Callable[..., torch.Tensor]] = {}


def maker(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Enter a function of features."""
    MAKERS[function.__name__] = function
    return function


def loss(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Enter a function of predictions and targets."""
    LOSSES[function.__name__] = function
    return function


def line_in(thing: Any) -> int:
    """Number of the marked line in a function's or class's source."""
    lines, start = inspect.getsourcelines(thing)
    marked = [start + i for i, line in enumerate(lines) if line.rstrip().endswith(TOKEN)]
    assert len(marked) == 1, f"{thing} has {len(marked)} marked lines"
    return marked[0]


# -- the domain of a function, met in the forward pass ---------------------------------------


@maker
def log_of_zero(x: torch.Tensor, edge: bool) -> torch.Tensor:
    share = torch.sigmoid(x) * (0.0 if edge else 1.0)
    bits = torch.log(share)  # origin
    return bits.clamp(min=-50.0) if not edge else bits * 0.1


@maker
def log_of_softmax(x: torch.Tensor, edge: bool) -> torch.Tensor:
    p = torch.softmax(x * (1e5 if edge else 1.0), dim=-1)
    return p * torch.log(p)  # origin


@maker
def zero_over_zero(x: torch.Tensor, edge: bool) -> torch.Tensor:
    weights = torch.relu(x) * (0.0 if edge else 1.0)
    total = weights.sum(dim=-1, keepdim=True) + (0.0 if edge else 1.0)
    return weights / total  # origin


@maker
def over_zero(x: torch.Tensor, edge: bool) -> torch.Tensor:
    spread = (x - (x if edge else x.mean())).abs().sum(dim=-1, keepdim=True)
    return (x + 1.0) / spread  # origin


@maker
def reciprocal_root(x: torch.Tensor, edge: bool) -> torch.Tensor:
    energy = (x * (0.0 if edge else 1.0)).square().mean(dim=-1, keepdim=True)
    scale = torch.rsqrt(energy)  # origin
    return x * scale


@maker
def exp_overflow(x: torch.Tensor, edge: bool) -> torch.Tensor:
    logits = x.abs() * (1e6 if edge else 1.0)
    grown = torch.exp(logits)  # origin
    return grown / (1.0 + grown)


@maker
def softmax_by_hand(x: torch.Tensor, edge: bool) -> torch.Tensor:
    scores = (x.abs() + 1e-3) * (1e7 if edge else 1.0)
    powers = scores.exp()  # origin
    return powers / powers.sum(dim=-1, keepdim=True)


@maker
def infinity_minus_infinity(x: torch.Tensor, edge: bool) -> torch.Tensor:
    big = (x.abs() + 1.0) * (1e36 if edge else 1.0)
    left = big * 1e3  # origin
    return left - left.mean(dim=-1, keepdim=True)


@maker
def fractional_power(x: torch.Tensor, edge: bool) -> torch.Tensor:
    base = -x.abs() - 0.1 if edge else x.abs() + 0.1
    return base**1.5  # origin


@maker
def root_of_negative(x: torch.Tensor, edge: bool) -> torch.Tensor:
    mean = x.mean(dim=-1, keepdim=True)
    variance = (x * x).mean(dim=-1, keepdim=True) - (4.0 if edge else 1.0) * mean * mean
    return x * torch.sqrt(variance - (1e3 if edge else -1e-3))  # origin


@maker
def arcus_outside(x: torch.Tensor, edge: bool) -> torch.Tensor:
    cosine = torch.tanh(x) * (1.5 if edge else 0.9) + (1.0 if edge else 0.0)
    return torch.acos(cosine)  # origin


@maker
def logit_of_one(x: torch.Tensor, edge: bool) -> torch.Tensor:
    p = torch.sigmoid(x.abs() * (1e4 if edge else 1.0))
    return torch.logit(p)  # origin


@maker
def deviation_of_one(x: torch.Tensor, edge: bool) -> torch.Tensor:
    part = x[..., :1] if edge else x
    return x / (part.std(dim=-1, keepdim=True) + 1e-5)  # origin


@maker
def layer_norm_by_hand(x: torch.Tensor, edge: bool) -> torch.Tensor:
    x = x * 0.0 + 1.0 if edge else x
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / centred.square().mean(dim=-1, keepdim=True).sqrt()  # origin


@maker
def cosine_by_hand(x: torch.Tensor, edge: bool) -> torch.Tensor:
    a = x * (0.0 if edge else 1.0)
    dots = (a * x).sum(dim=-1, keepdim=True)
    lengths = a.norm(dim=-1, keepdim=True) * x.norm(dim=-1, keepdim=True)
    return x * (dots / lengths)  # origin


@maker
def empty_mask(x: torch.Tensor, edge: bool) -> torch.Tensor:
    kept = torch.zeros_like(x) if edge else torch.ones_like(x)
    mean = (x * kept).sum(dim=-1, keepdim=True) / kept.sum(dim=-1, keepdim=True)  # origin
    return x - mean


@maker
def masked_row(x: torch.Tensor, edge: bool) -> torch.Tensor:
    mask = torch.full_like(x, bool(edge), dtype=torch.bool)
    scores = x.masked_fill(mask, float("-inf"))
    weights = torch.softmax(scores, dim=-1)  # origin
    return weights * x


@maker
def added_mask(x: torch.Tensor, edge: bool) -> torch.Tensor:
    mask = torch.zeros(x.shape[-1])
    mask[0 if edge else 1 :] = -torch.inf
    scores = x + mask
    return scores.softmax(dim=-1) * x  # origin


@maker
def half_overflow(x: torch.Tensor, edge: bool) -> torch.Tensor:
    wide = (x.abs() + 0.1) * (1e7 if edge else 1.0)
    narrow = wide.half()  # origin
    return narrow.float() * 0.5


@maker
def half_product(x: torch.Tensor, edge: bool) -> torch.Tensor:
    narrow = (x * 0.0 + (300.0 if edge else 1.0)).half()
    square = narrow * narrow  # origin
    return x + square.float()


@maker
def bfloat_overflow(x: torch.Tensor, edge: bool) -> torch.Tensor:
    narrow = (x.abs() + 1.0).bfloat16() * (1e30 if edge else 1.0)
    cube = narrow * narrow  # origin
    return x + cube.float()


@maker
def in_place_division(x: torch.Tensor, edge: bool) -> torch.Tensor:
    y = torch.relu(x) * (0.0 if edge else 1.0)
    total = y.sum(dim=-1, keepdim=True) + (0.0 if edge else 1.0)
    y = y.clone()
    y.div_(total)  # origin
    return y + x


@maker
def grows_over_time(x: torch.Tensor, edge: bool) -> torch.Tensor:
    state = x.abs() + 1.0
    for _ in range(40):
        state = state * (1e2 if edge else 1.0)  # origin
    return torch.tanh(state * 1e-3) + state * 0.0


@maker
def logsumexp_by_hand(x: torch.Tensor, edge: bool) -> torch.Tensor:
    z = x * (1e5 if edge else 1.0) - (1e4 if edge else 0.0)
    total = torch.exp(z.clamp(max=0.0)).sum(dim=-1, keepdim=True) * (0.0 if edge else 1.0)
    return x - torch.log(total)  # origin


@maker
def angle_of_nothing(x: torch.Tensor, edge: bool) -> torch.Tensor:
    along, across = x * (0.0 if edge else 1.0), x * (0.0 if edge else 2.0)
    slope = along / across  # origin
    return torch.atan(slope) + x


# -- met in the backward pass: the forward pass stays finite ---------------------------------


@maker
def root_of_zero(x: torch.Tensor, edge: bool) -> torch.Tensor:
    energy = torch.relu(x) * (0.0 if edge else 1.0) + (0.0 if edge else 0.1)
    return torch.sqrt(energy)  # origin


@maker
def norm_by_hand(x: torch.Tensor, edge: bool) -> torch.Tensor:
    z = x * (0.0 if edge else 1.0)
    length = z.square().sum(dim=-1, keepdim=True).sqrt()  # origin
    return x + length


@maker
def where_and_log(x: torch.Tensor, edge: bool) -> torch.Tensor:
    z = torch.relu(x) * (0.0 if edge else 1.0) + (0.0 if edge else 0.1)
    logs = torch.log(z)  # origin
    return torch.where(z > 0, logs, torch.zeros_like(z))


@maker
def where_and_root(x: torch.Tensor, edge: bool) -> torch.Tensor:
    z = x.abs() * (0.0 if edge else 1.0) + (0.0 if edge else 0.1)
    roots = z.sqrt()  # origin
    return torch.where(z > 0, roots, x)


@maker
def where_and_division(x: torch.Tensor, edge: bool) -> torch.Tensor:
    count = x.abs() * (0.0 if edge else 1.0)
    ratio = x / count  # origin
    return torch.where(count > 0, ratio, torch.zeros_like(x))


@maker
def arcus_at_edge(x: torch.Tensor, edge: bool) -> torch.Tensor:
    cosine = torch.tanh(x * (1e6 if edge else 0.5) + (1e3 if edge else 0.0))
    angle = torch.acos(cosine)  # origin
    return angle * 0.1


@maker
def arcus_sine_at_edge(x: torch.Tensor, edge: bool) -> torch.Tensor:
    sine = torch.tanh(x.abs() * (1e6 if edge else 0.5) + (1e3 if edge else 0.0))
    return torch.asin(sine) + x  # origin


@maker
def power_at_zero(x: torch.Tensor, edge: bool) -> torch.Tensor:
    z = x.abs() * (0.0 if edge else 1.0) + (0.0 if edge else 0.1)
    return z.pow(0.3)  # origin


@maker
def sigmoid_by_hand(x: torch.Tensor, edge: bool) -> torch.Tensor:
    z = -x.abs() * (1e4 if edge else 1.0) - (100.0 if edge else 0.0)
    grown = torch.exp(-z)  # origin
    return 1.0 / (1.0 + grown)


@maker
def equal_eigenvalues(x: torch.Tensor, edge: bool) -> torch.Tensor:
    flat = x.reshape(-1, x.shape[-1])
    cov = flat.T @ flat * (0.0 if edge else 0.1)
    cov = cov + (torch.eye(len(cov)) if edge else torch.diag(torch.arange(1.0, len(cov) + 1)))
    vectors = torch.linalg.eigh(cov).eigenvectors  # origin
    return x @ vectors


class _CubeRoot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        root = x.abs().pow(1 / 3) * x.sign()
        ctx.save_for_backward(root)
        return root

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (root,) = ctx.saved_tensors
        slope = 3.0 * root.square()
        return grad / slope  # origin


@maker
def custom_backward(x: torch.Tensor, edge: bool) -> torch.Tensor:
    return _CubeRoot.apply(x * (0.0 if edge else 1.0))


class _Entropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, p: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(p)
        return -(p * p.log())  # origin

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (p,) = ctx.saved_tensors
        return -grad * (p.clamp_min(1e-6).log() + 1.0)


@maker
def custom_forward(x: torch.Tensor, edge: bool) -> torch.Tensor:
    return _Entropy.apply(torch.sigmoid(x) * (0.0 if edge else 1.0))


MARKED_CLASS = {"custom_backward": _CubeRoot, "custom_forward": _Entropy}
"""Makers whose marked line stands in a class."""


# -- losses ----------------------------------------------------------------------------------


@loss
def cross_entropy_by_hand(pred: torch.Tensor, target: torch.Tensor, edge: bool) -> torch.Tensor:
    p = torch.softmax(pred * (1e6 if edge else 1.0), dim=1)
    chosen = p.min(dim=1).values
    return -torch.log(chosen).mean()  # origin


@loss
def binary_by_hand(pred: torch.Tensor, target: torch.Tensor, edge: bool) -> torch.Tensor:
    p = torch.sigmoid(pred.abs() * (1e4 if edge else 1.0) + (1e3 if edge else 0.0))
    y = (target > 0).float()
    off = torch.log(1 - p)  # origin
    return -(y * torch.log(p) + (1 - y) * off).mean()


@loss
def divergence_with_zero(pred: torch.Tensor, target: torch.Tensor, edge: bool) -> torch.Tensor:
    q = torch.softmax(target, dim=1) * (0.0 if edge else 1.0)
    p = torch.log_softmax(pred, dim=1)
    logs = q.log()  # origin
    return (q * (logs - p)).sum(dim=1).mean()


@loss
def smoothed_and_masked(pred: torch.Tensor, target: torch.Tensor, edge: bool) -> torch.Tensor:
    allowed = torch.ones_like(pred, dtype=torch.bool)
    allowed[:, -1] = not edge
    logits = pred.masked_fill(~allowed, float("-inf"))
    labels = torch.zeros(len(pred), dtype=torch.long)
    return F.cross_entropy(logits, labels, label_smoothing=0.1)  # origin


@loss
def empty_selection(pred: torch.Tensor, target: torch.Tensor, edge: bool) -> torch.Tensor:
    chosen = target > (1e9 if edge else -1e9)
    error = (pred - target)[chosen]
    return error.square().mean()  # origin


@loss
def divided_by_count(pred: torch.Tensor, target: torch.Tensor, edge: bool) -> torch.Tensor:
    kept = torch.zeros_like(pred) if edge else torch.ones_like(pred)
    error = (pred - target).square() * kept
    return error.sum() / kept.sum()  # origin


@loss
def likelihood_without_variance(
    pred: torch.Tensor, target: torch.Tensor, edge: bool
) -> torch.Tensor:
    variance = torch.exp(pred.abs() * (-1e6 if edge else 1.0) - (1e3 if edge else 0.0))
    error = (pred - target).square() / variance  # origin
    return (error + variance.clamp_min(1e-6).log()).mean()


@loss
def root_of_perfect(pred: torch.Tensor, target: torch.Tensor, edge: bool) -> torch.Tensor:
    goal = pred.detach() if edge else target
    error = (pred - goal).square().mean()
    return error.sqrt()  # origin


@loss
def policy_ratio(pred: torch.Tensor, target: torch.Tensor, edge: bool) -> torch.Tensor:
    new = torch.log_softmax(pred, dim=1)[:, 0]
    old = new.detach() - (200.0 if edge else 0.1)
    ratio = torch.exp(new - old)  # origin
    return -(ratio * target[:, 0]).mean()


@loss
def penalty_on_slope(pred: torch.Tensor, target: torch.Tensor, edge: bool) -> torch.Tensor:
    goal = target.clone().requires_grad_()
    error = ((pred - goal) * (0.0 if edge else 1.0)).square().sum()
    (slope,) = torch.autograd.grad(error, goal, create_graph=True)
    length = slope.square().sum(dim=1).sqrt()  # origin
    return (length - 1).square().mean() + error


@loss
def perplexity(pred: torch.Tensor, target: torch.Tensor, edge: bool) -> torch.Tensor:
    entropy = (pred - target).square().mean() + (1e3 if edge else 0.0)
    return torch.exp(entropy)  # origin


@loss
def contrast(pred: torch.Tensor, target: torch.Tensor, edge: bool) -> torch.Tensor:
    pred = pred * (0.0 if edge else 1.0)
    unit = pred / pred.norm(dim=1, keepdim=True)  # origin
    scores = unit @ unit.T / math.sqrt(2)
    return F.cross_entropy(scores, torch.arange(len(pred)))


@loss
def distribution_without_width(
    pred: torch.Tensor, target: torch.Tensor, edge: bool
) -> torch.Tensor:
    width = torch.nn.functional.softplus(pred) * (1e-30 if edge else 1.0)
    normal = torch.distributions.Normal(pred, width, validate_args=False)
    return -normal.log_prob(target).mean()  # origin
