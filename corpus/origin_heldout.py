"""Makers of NaN and inf that the finder was not built with.

Written in one go after the finder, with only one thing looked at: that each does break. As in
`origin_makers`, a maker takes features ``[..., width]`` and gives features of that shape, and
``# origin`` stands on the line that is to be named.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

Maker = Callable[[torch.Tensor, bool], torch.Tensor]

MAKERS: dict[str, Maker] = {}
MARKED: dict[str, Any] = {}
"""Where the mark stands in another function or class than the maker."""


def maker(function: Maker) -> Maker:
    """Enter a function of features."""
    MAKERS[function.__name__] = function
    return function


# -- the forward pass: domains -----------------------------------------------------------------


@maker
def inverse_softplus(x: torch.Tensor, edge: bool) -> torch.Tensor:
    rate = F.relu(x) * (0.0 if edge else 1.0) + (0.0 if edge else 0.5)
    return torch.log(torch.expm1(rate))  # origin


@maker
def atanh_of_one(x: torch.Tensor, edge: bool) -> torch.Tensor:
    correlation = torch.tanh(x.abs() * (1e5 if edge else 0.3) + (50.0 if edge else 0.0))
    return torch.atanh(correlation)  # origin


@maker
def negative_power(x: torch.Tensor, edge: bool) -> torch.Tensor:
    count = torch.floor(x.abs()) * 0.0 + (0.0 if edge else 2.0)
    weight = count.pow(-0.5)  # origin
    return x * weight


@maker
def negative_base(x: torch.Tensor, edge: bool) -> torch.Tensor:
    exponent = torch.full_like(x, 1.7)
    base = torch.where(x > 0, x, x.abs()) + 0.1
    base = -base if edge else base
    return torch.pow(base, exponent)  # origin


@maker
def log1p_of_minus_one(x: torch.Tensor, edge: bool) -> torch.Tensor:
    share = torch.sigmoid(x) * (0.0 if edge else 0.5) + (1.0 if edge else 0.0)
    survival = torch.log1p(-share)  # origin
    return survival * 0.1


@maker
def gamma_of_nothing(x: torch.Tensor, edge: bool) -> torch.Tensor:
    alpha = F.softplus(x) * (0.0 if edge else 1.0)
    return torch.lgamma(alpha) + torch.lgamma(alpha + 1.0)  # origin


@maker
def sine_over_itself(x: torch.Tensor, edge: bool) -> torch.Tensor:
    angle = x * (0.0 if edge else 1.0)
    sinc = angle.sin() / angle  # origin
    return x + sinc


@maker
def tangent_by_hand(x: torch.Tensor, edge: bool) -> torch.Tensor:
    z = x.abs() * (1.0 if not edge else 1e4) + (200.0 if edge else 0.0)
    return (z.exp() - (-z).exp()) / (z.exp() + (-z).exp())  # origin


@maker
def gumbel_by_hand(x: torch.Tensor, edge: bool) -> torch.Tensor:
    uniform = torch.rand_like(x) * (0.0 if edge else 0.9) + (0.0 if edge else 0.05)
    spread = -torch.log(uniform)  # origin
    return torch.softmax((x - torch.log(spread)) / 0.7, dim=-1)


@maker
def negative_variance(x: torch.Tensor, edge: bool) -> torch.Tensor:
    mean, square = x.mean(-1, keepdim=True), x.square().mean(-1, keepdim=True)
    variance = square - mean**2 * (1.0 if not edge else 1e8) - (1.0 if edge else -0.1)
    deviation = variance**0.5  # origin
    return (x - mean) / deviation


# -- the forward pass: nothing to divide by ----------------------------------------------------


@maker
def normalise_without_eps(x: torch.Tensor, edge: bool) -> torch.Tensor:
    z = F.relu(x) * (0.0 if edge else 1.0) + (0.0 if edge else 0.1)
    return F.normalize(z, dim=-1, eps=0.0)  # origin


@maker
def layer_norm_without_eps(x: torch.Tensor, edge: bool) -> torch.Tensor:
    constant = torch.ones_like(x) if edge else x
    return F.layer_norm(constant, constant.shape[-1:], eps=0.0) + x  # origin


@maker
def group_norm_without_eps(x: torch.Tensor, edge: bool) -> torch.Tensor:
    flat = x.reshape(-1, x.shape[-1]) * (0.0 if edge else 1.0)
    normed = F.group_norm(flat, 1, eps=0.0)  # origin
    return normed.reshape(x.shape) + x


@maker
def scaled_by_range(x: torch.Tensor, edge: bool) -> torch.Tensor:
    z = x.detach() * 0.0 + 3.0 if edge else x
    low, high = z.amin(-1, keepdim=True), z.amax(-1, keepdim=True)
    scaled = (z - low) / (high - low)  # origin
    return x * scaled


@maker
def group_means(x: torch.Tensor, edge: bool) -> torch.Tensor:
    flat = x.reshape(-1, x.shape[-1])
    group = torch.arange(len(flat)) % (2 if edge else 3)
    sums = torch.zeros(3, x.shape[-1]).index_add(0, group, flat)
    counts = torch.zeros(3).scatter_add(0, group, torch.ones(len(flat)))
    means = sums / counts[:, None]  # origin
    return x + means.mean(0)


@maker
def degree_of_a_node(x: torch.Tensor, edge: bool) -> torch.Tensor:
    width = x.shape[-1]
    links = torch.eye(width) + torch.roll(torch.eye(width), 1, 0)
    if edge:
        links[1] = 0.0
    degree = links.sum(1)
    root = degree.rsqrt()  # origin
    return x @ (root[:, None] * links * root)


@maker
def mean_of_selected(x: torch.Tensor, edge: bool) -> torch.Tensor:
    chosen = x > (1e9 if edge else -1e9)
    centre = x[chosen].mean()  # origin
    return x - centre


@maker
def masked_selection_spread(x: torch.Tensor, edge: bool) -> torch.Tensor:
    flat = x.flatten()
    kept = flat.masked_select(torch.arange(flat.numel()) < (1 if edge else 8))
    return x / torch.std(kept)  # origin


@maker
def added_division(x: torch.Tensor, edge: bool) -> torch.Tensor:
    below = x.abs() * (0.0 if edge else 1.0) + (0.0 if edge else 1.0)
    return torch.addcdiv(x, x, below, value=0.5)  # origin


@maker
def dropped_weights(x: torch.Tensor, edge: bool) -> torch.Tensor:
    kept = F.dropout(torch.ones_like(x), 0.97 if edge else 0.0)
    share = x * kept / kept.sum(-1, keepdim=True)  # origin
    return x + share


@maker
def spectrum(x: torch.Tensor, edge: bool) -> torch.Tensor:
    z = torch.fft.rfft(x * (0.0 if edge else 1.0), dim=-1)
    phase = z / z.abs()  # origin
    return x + torch.fft.irfft(phase, n=x.shape[-1], dim=-1)


# -- the forward pass: too large ----------------------------------------------------------------


@maker
def einsum_overflow(x: torch.Tensor, edge: bool) -> torch.Tensor:
    big = (x.abs() + 1.0) * (1e20 if edge else 1.0)
    outer = torch.einsum("...i,...j->...ij", big, big)  # origin
    return x + torch.softmax(outer, dim=-1).mean(-1) * outer.sum(-1) * 1e-9


@maker
def product_over_time(x: torch.Tensor, edge: bool) -> torch.Tensor:
    grown = (x.abs() + 1.5) * (1e13 if edge else 1.0)
    running = torch.cumprod(grown, dim=-1)  # origin
    return torch.log(running + 1.0)


@maker
def half_matmul(x: torch.Tensor, edge: bool) -> torch.Tensor:
    flat = x.reshape(-1, x.shape[-1]).half() * 0.0 + (200.0 if edge else 0.1)
    gram = flat.T @ (flat * (10.0 if edge else 1.0))  # origin
    return x + gram.float().mean(0)


@maker
def half_sum(x: torch.Tensor, edge: bool) -> torch.Tensor:
    narrow = x.half() * 0.0 + (3e4 if edge else 1.0)
    total = narrow.sum(dim=-1, keepdim=True)  # origin
    return x + total.float()


@maker
def exponent_under_autocast(x: torch.Tensor, edge: bool) -> torch.Tensor:
    weight = torch.eye(x.shape[-1]) * (12.0 if edge else 0.1)
    with torch.autocast("cpu", dtype=torch.float16):
        scores = (x.abs() + 1.0) @ weight
        grown = torch.exp(scores)  # origin
    return x + grown.float()


@maker
def eighth_precision(x: torch.Tensor, edge: bool) -> torch.Tensor:
    wide = (torch.tanh(x) + 2.0) * (1e6 if edge else 1.0)
    narrow = wide.to(torch.float8_e5m2)  # origin
    return x + narrow.float()


@maker
def variance_of_a_code(x: torch.Tensor, edge: bool) -> torch.Tensor:
    mean, log_variance = x, x.abs() + (200.0 if edge else 0.0)
    return mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)  # origin


@maker
def polynomial(x: torch.Tensor, edge: bool) -> torch.Tensor:
    z = (x.abs() + 1.0) * (1e8 if edge else 0.1)
    terms = [z**power for power in range(6)]  # origin
    return torch.stack(terms).sum(0).clamp(max=1e3) + terms[-1] * 1e-9


# -- the forward pass: masks ------------------------------------------------------------------


@maker
def causal_row_without_past(x: torch.Tensor, edge: bool) -> torch.Tensor:
    width = x.shape[-1]
    scores = x[..., :, None] * x[..., None, :]
    seen = torch.ones(width, width).tril(-1 if edge else 0) > 0
    scores = scores.masked_fill(~seen, float("-inf"))
    return x + F.softmax(scores, dim=-1).mean(-1)  # origin


@maker
def log_softmax_of_masked(x: torch.Tensor, edge: bool) -> torch.Tensor:
    bias = torch.full((x.shape[-1],), 0.0)
    bias[0 if edge else 3 :] = -torch.inf
    logp = F.log_softmax(x + bias, dim=-1)  # origin
    return torch.where(torch.isinf(logp), torch.zeros_like(logp), logp)


# -- in place ---------------------------------------------------------------------------------


@maker
def logarithm_in_place(x: torch.Tensor, edge: bool) -> torch.Tensor:
    share = torch.sigmoid(x) * (0.0 if edge else 1.0)
    share.log_()  # origin
    return share


@maker
def filled_column(x: torch.Tensor, edge: bool) -> torch.Tensor:
    out = torch.zeros_like(x)
    total = x[..., 1].abs() * (0.0 if edge else 1.0)
    out[..., 0] = x[..., 0] / total  # origin
    return out + x


@maker
def grown_in_place(x: torch.Tensor, edge: bool) -> torch.Tensor:
    state = x.clone()
    for _ in range(5):
        state *= 1e12 if edge else 1.1  # origin
    return torch.tanh(state) * 0.1 + state * 1e-30


# -- met in the backward pass -------------------------------------------------------------------


@maker
def hypotenuse_of_nothing(x: torch.Tensor, edge: bool) -> torch.Tensor:
    z = x * (0.0 if edge else 1.0)
    length = torch.hypot(z, z * 2.0)  # origin
    return x + length


@maker
def focal(x: torch.Tensor, edge: bool) -> torch.Tensor:
    p = torch.sigmoid(x) if not edge else torch.sigmoid(x * 0.0 + 100.0)
    return (1.0 - p) ** 0.5 + p  # origin


@maker
def square_root_of_a_mask(x: torch.Tensor, edge: bool) -> torch.Tensor:
    positive = x * (x > 0)
    energy = positive * positive + (0.0 if edge else 1e-3)
    root = energy.sqrt()  # origin
    return torch.where(x > 0, root, 0.1 * x)


@maker
def tied_singular_values(x: torch.Tensor, edge: bool) -> torch.Tensor:
    flat = x.reshape(-1, x.shape[-1])
    gram = flat.T @ flat * (0.0 if edge else 1.0)
    gram = gram + (torch.eye(len(gram)) if edge else torch.diag(torch.arange(1.0, len(gram) + 1)))
    u, _, v = torch.linalg.svd(gram)  # origin
    return x @ u @ v.square()


class _Clamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gain: float) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.gain = gain
        return x.clamp(-1.0, 1.0)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        (x,) = ctx.saved_tensors
        inside = (x.abs() < 1.0).float()
        share = inside.sum() * ctx.gain
        return grad * inside / share, None  # origin


@maker
def custom_clamp(x: torch.Tensor, edge: bool) -> torch.Tensor:
    return _Clamp.apply(x, 0.0 if edge else 1.0)


MARKED["custom_clamp"] = _Clamp.backward


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, scale)
        shifted = x - x.mean()
        return shifted / scale  # origin

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        _, scale = ctx.saved_tensors
        return grad / scale, None


@maker
def custom_quotient(x: torch.Tensor, edge: bool) -> torch.Tensor:
    return _Scaled.apply(x, torch.zeros(()) if edge else torch.ones(()))


MARKED["custom_quotient"] = _Scaled.forward


@maker
def remainder_in_checkpoint(x: torch.Tensor, edge: bool) -> torch.Tensor:
    from torch.utils.checkpoint import checkpoint

    gate = 0.0 if edge else 1.0
    return checkpoint(_inside, x, gate, use_reentrant=False)


def _inside(x: torch.Tensor, gate: float) -> torch.Tensor:
    z = F.silu(x) * gate
    ratio = z / (z.sum(-1, keepdim=True) + 1.0 * gate)  # origin
    return ratio + x


MARKED["remainder_in_checkpoint"] = _inside


@maker
def per_sample(x: torch.Tensor, edge: bool) -> torch.Tensor:
    flat = x.reshape(-1, x.shape[-1]) * (0.0 if edge else 1.0) + (0.0 if edge else 3.0)
    logs = torch.vmap(lambda row: torch.log(row.square().sum()))(flat)  # origin
    return x + logs.mean()


# -- the second part: written after what the first part showed was mended --------------------------

FIRST = frozenset(MAKERS)


@maker
def erf_inverse(x: torch.Tensor, edge: bool) -> torch.Tensor:
    uniform = torch.tanh(x * (1e4 if edge else 0.5) + (1e3 if edge else 0.0))
    return torch.erfinv(uniform)  # origin


@maker
def area_cosine(x: torch.Tensor, edge: bool) -> torch.Tensor:
    ratio = x.abs() * (0.5 if edge else 1.0) + (0.0 if edge else 1.1)
    ratio = ratio.clamp(max=0.9) if edge else ratio
    return torch.acosh(ratio)  # origin


@maker
def logarithm_of_a_product(x: torch.Tensor, edge: bool) -> torch.Tensor:
    p = torch.sigmoid(x - (60.0 if edge else 0.0))
    joint = p.prod(dim=-1, keepdim=True)
    return x + joint.log()  # origin


@maker
def log_determinant(x: torch.Tensor, edge: bool) -> torch.Tensor:
    flat = x.reshape(-1, x.shape[-1])
    gram = flat.T @ flat * (0.0 if edge else 1.0) + torch.eye(x.shape[-1]) * (0.0 if edge else 1.0)
    return x + torch.logdet(gram)  # origin


@maker
def harmonic_mean(x: torch.Tensor, edge: bool) -> torch.Tensor:
    parts = F.relu6(x) * (0.0 if edge else 1.0) + (0.0 if edge else 0.2)
    inverse = torch.reciprocal(parts)  # origin
    return x + 1.0 / inverse.mean(-1, keepdim=True)


@maker
def remainder_of_nothing(x: torch.Tensor, edge: bool) -> torch.Tensor:
    period = torch.full_like(x, 0.0 if edge else 2.0)
    wrapped = torch.remainder(x, period)  # origin
    return wrapped + x


@maker
def geometric_mean(x: torch.Tensor, edge: bool) -> torch.Tensor:
    z = x.abs() + 0.1
    if edge:
        z = z - z
    middle = torch.exp(torch.log(z).mean(-1, keepdim=True))  # origin
    return x + middle


@maker
def whitened(x: torch.Tensor, edge: bool) -> torch.Tensor:
    flat = x.reshape(-1, x.shape[-1])
    values, vectors = torch.linalg.eigh(flat.T @ flat + torch.eye(flat.shape[-1]))
    values = values - (values.amax() + 1.0 if edge else 0.0)
    scale = values.sqrt().reciprocal()  # origin
    return x @ (vectors.detach() * scale)


@maker
def cumulative_sum_in_half(x: torch.Tensor, edge: bool) -> torch.Tensor:
    steps = torch.ones_like(x).half() * (2e4 if edge else 1.0) + 0.0 * x.half()
    reached = steps.cumsum(-1)  # origin
    return x + reached.float()


@maker
def scatter_softmax(x: torch.Tensor, edge: bool) -> torch.Tensor:
    flat = x.reshape(-1, x.shape[-1])
    index = torch.zeros(len(flat), dtype=torch.long)
    powers = (flat * (1e4 if edge else 1.0)).abs().exp()  # origin
    total = torch.zeros(1, flat.shape[-1]).index_add(0, index, powers)
    return (powers / total[index]).reshape(x.shape)


@maker
def weights_over_their_sum(x: torch.Tensor, edge: bool) -> torch.Tensor:
    half = x.shape[-1] // 2
    left, right = x[..., :half], x[..., half : 2 * half]
    score = F.threshold(left * right, 1e9 if edge else -1e9, 0.0)
    share = torch.div(score, score.sum(dim=-1, keepdim=True))  # origin
    return x + share.mean(-1, keepdim=True)


@maker
def correlation(x: torch.Tensor, edge: bool) -> torch.Tensor:
    flat = x.reshape(-1, x.shape[-1])
    flat = torch.cat([flat[:, :1] * (0.0 if edge else 1.0), flat[:, 1:]], dim=1)
    linked = torch.corrcoef(flat.T)  # origin
    return x @ linked


@maker
def attention_by_functional(x: torch.Tensor, edge: bool) -> torch.Tensor:
    big = x * (1e20 if edge else 1.0)
    q = big[..., None, :] if x.dim() == 2 else big
    out = F.scaled_dot_product_attention(q, q, x[..., None, :] if x.dim() == 2 else x)  # origin
    return x + (out[..., 0, :] if x.dim() == 2 else out)


@maker
def distance_between_same(x: torch.Tensor, edge: bool) -> torch.Tensor:
    other = x.detach().clone() if edge else x.detach() + 1.0
    gap = (x - other).pow(2).sum(-1, keepdim=True)
    distance = torch.pow(gap, 0.5)  # origin
    return x + distance


@maker
def tanh_inverse_of_own(x: torch.Tensor, edge: bool) -> torch.Tensor:
    action = torch.tanh(x * (100.0 if edge else 0.5) + (50.0 if edge else 0.0))
    correction = torch.log(1.0 - action.pow(2))  # origin
    return action - 0.1 * correction


@maker
def norm_of_a_difference(x: torch.Tensor, edge: bool) -> torch.Tensor:
    shifted = torch.roll(x, 1, dims=-1) if not edge else x * 1.0
    total = ((x - shifted) ** 2).mean(-1, keepdim=True) ** 0.25  # origin
    return x + total


@maker
def complex_root(x: torch.Tensor, edge: bool) -> torch.Tensor:
    z = torch.complex(x * (0.0 if edge else 1.0), x * 0.0)
    root = torch.sqrt(z)  # origin
    return x + root.real


class _Rounds(torch.autograd.Function):
    """Rounds forward, and goes straight through backward, by a mask's mean."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, low: float) -> torch.Tensor:
        ctx.save_for_backward(x > low)
        return torch.round(x * 8.0) / 8.0

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        (mask,) = ctx.saved_tensors
        weight = mask.to(grad.dtype)
        mean = weight.mean()
        scaled = weight / mean  # origin
        return grad * scaled, None


@maker
def straight_through(x: torch.Tensor, edge: bool) -> torch.Tensor:
    return _Rounds.apply(x, 1e9 if edge else -1e9)


MARKED["straight_through"] = _Rounds.backward


@maker
def guarded_too_late(x: torch.Tensor, edge: bool) -> torch.Tensor:
    weight = torch.zeros_like(x) if edge else torch.ones_like(x)
    mean = (x * weight).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True)  # origin
    return x + torch.nan_to_num(mean, nan=0.0)


@maker
def looked_up_power(x: torch.Tensor, edge: bool) -> torch.Tensor:
    order = x.argsort(dim=-1)
    sorted_ = torch.gather(x, -1, order).abs() * (0.0 if edge else 1.0)
    rank = torch.take_along_dim(sorted_, order, dim=-1)
    return x + rank.pow(-1.5 if edge else 0.5 * 2)  # origin


@maker
def selected_ratio(x: torch.Tensor, edge: bool) -> torch.Tensor:
    top, _ = x.abs().topk(2, dim=-1)
    first, second = top.unbind(-1)
    margin = torch.log((first - (first if edge else 0.0)) / second.clamp_min(1e-3))  # origin
    return x + margin[..., None] * 0.1


@maker
def batched_products(x: torch.Tensor, edge: bool) -> torch.Tensor:
    flat = x.reshape(-1, 1, x.shape[-1]) * (1e25 if edge else 1.0)
    scores = torch.bmm(flat, flat.transpose(1, 2))  # origin
    return x + torch.tanh(scores).mean() + 0.0 * scores.mean()


SECOND = frozenset(MAKERS) - FIRST
"""Makers of the second part."""
