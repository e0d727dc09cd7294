"""What ``--find-nan`` found, as evidence and as a fix: a small table from operation to code."""

from __future__ import annotations

from steadygrad.rules.evidence.view import View
from steadygrad.runlog.origin import Origin
from steadygrad.vocabulary import NAN_ORIGIN

HUGE = 1e30
"""A logit beyond which the loss itself overflows."""
_FIXES = (
    ("log_softmax cross_entropy nll_loss", "logits = logits.clamp_min(-1e4)  # no label at -inf"),
    ("softmax", "scores = scores.clamp_min(-1e4)  # before softmax: a row of -inf is NaN"),
    ("log log2 log10 log1p", "y = torch.log(x.clamp_min(1e-6))  # of softmax: F.log_softmax"),
    ("sqrt rsqrt norm", "y = torch.sqrt(x + 1e-8)  # its slope at 0 is infinite"),
    ("div truediv reciprocal", "y = x / d.clamp_min(1e-6)  # or x / (d + eps)"),
    ("exp expm1", "y = torch.exp(x.clamp_max(20.0))  # of a logarithm of a variance too"),
    ("pow", "y = x.clamp_min(1e-6) ** p  # no negative base, no slope at 0"),
    ("acos asin atan2 logit atanh", "y = torch.acos(x.clamp(-1 + 1e-6, 1 - 1e-6))"),
    ("std var", "y = x.std(dim, correction=0) + 1e-6  # one element has no deviation"),
    ("mean", "y = error[chosen].sum() / chosen.sum().clamp_min(1)  # the selection may be empty"),
    ("half to", "y = x.clamp(-6e4, 6e4).half()  # or bfloat16, whose range is float32's"),
    ("ctc_loss", "loss = F.ctc_loss(logs, labels, lengths, label_lengths, zero_infinity=True)\n"
     "# an input shorter than its labels has no alignment: drop such pairs"),
    ("eigh svd linalg_eigh linalg_svd", "a = a + 1e-6 * torch.diag(torch.arange(len(a)))"),
)  # fmt: skip
_ROWS = (
    "rows = torch.isfinite(batch).flatten(1).all(1)  # which rows are broken?\n"
    "batch, target = batch[rows], target[rows]"
)
_COLUMNS = (
    "columns = torch.isfinite(batch).all(0)  # every row is broken: which columns are?\n"
    "x = (x - x.mean(0)) / x.std(0).clamp_min(1e-6)  # a constant column has no deviation"
)
_WHERE = (
    "safe = torch.where(ok, x, 1.0)  # mask before the operation, not after it:\n"
    "y = torch.where(ok, operation(safe), 0.0)"
)
_IGNORED = (
    "count = (labels != -100).sum().clamp_min(1)  # every label of the batch may be ignored\n"
    'loss = F.cross_entropy(logits, labels, reduction="sum") / count'
)
_NUMERATOR = (
    "y = x.clamp_min(-1e4) / d  # the infinity is in what is divided, not in the divisor\n"
    "# or divide first, and mask with -inf afterwards"
)
_NEGATIVE = (
    "y = torch.{name}(x.clamp_min(1e-6))\n"
    "# x is negative here, which the formula does not expect: look at what makes it"
)


def origin_of(view: View) -> Origin | None:
    """The first origin that was found for this optimizer."""
    events = view.events(NAN_ORIGIN)
    origins = [Origin.from_json(event.data) for event in events]
    return next((o for o in origins if o.replayed), origins[0] if origins else None)


def sentences(view: View) -> list[str]:
    """Sentences of evidence; none where nobody looked."""
    origin = origin_of(view)
    return origin.sentences() if origin is not None else []


def look(view: View) -> list[str]:
    """How to have the operation named, where nobody has looked for it; PyTorch only."""
    if origin_of(view) is not None or view.framework != "torch":
        return []
    return [
        "# names the operation, the line and the rows:\n"
        "#   steadygrad run --find-nan train.py\n"
        "import steadygrad.torch as sg\n"
        "sg.attach(optimizer, model=model, find_nan=True)  # the same in code"
    ]


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
    snippet = _snippet(origin)
    if not snippet:
        return []
    start = f"# {origin.place}: {origin.source}\n" if origin.place else ""
    hides = origin.phase == "backward" and "where(" in origin.source
    after = f"\n# where torch.where hides the value:\n{_WHERE}" if hides else ""
    return [start + snippet + after]


def _snippet(origin: Origin) -> str:
    """The fix for an operation given these arguments, else the one for the operation."""
    if origin.phase == "input":
        every = origin.batch > 1 and origin.rows_total == origin.batch
        return _COLUMNS if every else _ROWS
    name = _name(origin.operation)
    first = origin.inputs[0] if origin.inputs else None
    if first is None:
        return fix_of(origin.operation)
    if name in ("cross_entropy", "nll_loss") and not first.nonfinite and abs(first.high) < HUGE:
        return _IGNORED
    if name in ("div", "truediv") and first.nonfinite:
        return _NUMERATOR
    if name in ("log", "log2", "log10", "sqrt", "rsqrt") and first.low < 0:
        return _NEGATIVE.format(name=name)
    return fix_of(origin.operation)


def _name(operation: str) -> str:
    name = operation.rpartition(".")[2].lower().strip("_")
    return name.partition("backward")[0].partition(":")[0]


def fix_of(operation: str) -> str:
    """The snippet for one operation; empty for one that the table lacks.

    Example:
        >>> fix_of("torch.log") == fix_of("LogBackward0")
        True
        >>> fix_of("Tensor.__truediv__")
        'y = x / d.clamp_min(1e-6)  # or x / (d + eps)'
    """
    name = _name(operation)
    for names, snippet in _FIXES:
        if name in names.split():
            return snippet
    return ""
