"""What ``--find-nan`` found, as evidence and as a fix: a small table from operation to code."""

from __future__ import annotations

from steadygrad.rules.evidence.view import View
from steadygrad.runlog.origin import EVENT, Origin

_FIXES = (
    ("log_softmax cross_entropy nll_loss", "logits = logits.clamp_min(-1e4)  # no label at -inf"),
    ("softmax", "weights = torch.softmax(scores, -1).masked_fill(mask.all(-1, keepdim=True), 0.0)"),
    ("log log2 log10 log1p", "torch.log(x.clamp_min(1e-6))  # of a softmax: F.log_softmax(x, -1)"),
    ("sqrt rsqrt norm", "torch.sqrt(x + 1e-8)  # its slope at 0 is infinite"),
    ("div truediv reciprocal", "x / y.clamp_min(1e-6)  # or x / (y + eps)"),
    ("exp expm1", "torch.exp(x - x.amax(-1, keepdim=True))  # or x.clamp_max(80.0)"),
    ("pow", "x.clamp_min(1e-6) ** p  # no negative base, no slope at 0"),
    ("acos asin atan2 logit atanh", "torch.acos(x.clamp(-1 + 1e-6, 1 - 1e-6))"),
    ("std var", "x.std(dim, correction=0) + 1e-6  # one element has no deviation"),
    ("mean", "error[chosen].sum() / chosen.sum().clamp_min(1)  # the selection may be empty"),
    ("half to", "x.clamp(-6e4, 6e4).half()  # or bfloat16, whose range is float32's"),
    ("eigh svd linalg_eigh linalg_svd", "a = a + 1e-6 * torch.diag(torch.arange(len(a)))"),
)
_INPUT = (
    "rows = torch.isfinite(batch).flatten(1).all(1)  # which rows are broken?\n"
    "batch, target = batch[rows], target[rows]"
)
_WHERE = (
    "safe = torch.where(ok, x, 1.0)  # mask before the operation, not after it:\n"
    "y = torch.where(ok, operation(safe), 0.0)"
)


def origin_of(view: View) -> Origin | None:
    """The first origin that was found for this optimizer."""
    found = view.events(EVENT)
    return Origin.from_json(found[0].data) if found else None


def told(view: View) -> list[str]:
    """Sentences of evidence; none where nobody looked."""
    origin = origin_of(view)
    return origin.sentences() if origin is not None else []


def fixes(view: View) -> list[str]:
    """Code for the operation at fault; none where it is not known.

    Args:
        view: the run.

    Returns:
        At most one snippet.
    """
    origin = origin_of(view)
    if origin is None or not origin.replayed:
        return []
    snippet = _INPUT if origin.phase == "input" else fix_of(origin.operation)
    if not snippet:
        return []
    start = f"# {origin.place}: {origin.source}\n" if origin.place else ""
    after = (
        f"\n# where torch.where hides the value:\n{_WHERE}" if origin.phase == "backward" else ""
    )
    return [start + snippet + after]


def fix_of(operation: str) -> str:
    """The snippet for one operation; empty for one that the table lacks.

    Example:
        >>> fix_of("torch.log") == fix_of("LogBackward0")
        True
        >>> fix_of("Tensor.__truediv__")
        'x / y.clamp_min(1e-6)  # or x / (y + eps)'
    """
    name = operation.rpartition(".")[2].lower().strip("_")
    name = name.partition("backward")[0].partition(":")[0]
    for names, snippet in _FIXES:
        if name in names.split():
            return snippet
    return ""
