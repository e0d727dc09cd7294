"""What the first steps showed of the script's loop, as `steadygrad run` writes it down."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from steadygrad.robust import columns_median, median
from steadygrad.rules.evidence.steps import Array
from steadygrad.rules.evidence.update_sizes import move_alike
from steadygrad.rules.evidence.view import View
from steadygrad.runlog.info import GroupFacts, LoopFacts, SizeFacts, TargetFacts

LEFT = 0.1
"""Share of the first loss that is left where it was brought down."""
UNDERFLOWN = 0.2
"""Share of zeros from which a tensor's gradients may have been too small for their dtype."""
MOMENTUM = 10.0
"""Times which a momentum of 0.9 lengthens steps that agree."""
FEW = 4
"""Steps below which a habit of the loop is not taken for one."""
NORMALISED = (
    "adam", "adagrad", "adadelta", "adafactor", "rmsprop", "rprop", "lion", "lamb", "lars", "muon",
    "sophia", "adan", "novograd", "prodigy",
)  # fmt: skip
"""In the names of optimizers whose step does not change when all gradients are multiplied by one
number: with them a low threshold is common practice, and a spike lengthens a step a few times. Of
others the sizes of their updates tell it, where those were sampled."""


@dataclass(frozen=True)
class Loop:
    """How one optimizer's gradients are handled.

    Attributes:
        judged: steps before which it was known whether gradients had been cleared.
        uncleared: those before which nothing had cleared them.
        emptied: steps whose gradients were cleared between backward and step.
        passes: backward passes whose gradients a step sums up, the median.
        undivided: steps of several passes none of which began at a division.
        unmoved: steps that were given the very weights of the step before.
        raw: names of the tensors whose gradients were handed on as updates.
        renewed: steps whose optimizer had just been made, its state with it.
    """

    judged: int = 0
    uncleared: int = 0
    emptied: int = 0
    passes: int = 0
    undivided: int = 0
    renewed: int = 0
    unmoved: int = 0
    raw: tuple[str, ...] = ()


@dataclass(frozen=True)
class SharedFate:
    """A group of parameters with the same fault: in no optimizer, or no longer in the model.

    Attributes:
        names: of the first ones.
        count: how many they are.
        elements: their elements together.
        container: the plain attribute that holds them, e.g. ``Net.layers``; empty for none.
        of_the_model: whether the module that holds them holds the optimizer's parameters too.
    """

    names: tuple[str, ...]
    count: int
    elements: int
    container: str = ""
    of_the_model: bool = True

    @property
    def listed(self) -> str:
        """The first names, as text."""
        more = f" and {self.count - 4} more" if self.count > 4 else ""
        return ", ".join(self.names[:4]) + more


def loop_of(view: View) -> Loop:
    """The facts of this optimizer; all zero where nobody looked."""
    for entry in _facts(view).get("optimizers") or ():
        if entry.get("index") == view.optimizer:
            return Loop(
                entry.get("judged", 0),
                entry.get("held", 0),
                entry.get("emptied", 0),
                entry.get("passes", 0),
                entry.get("undivided", 0),
                entry.get("renewed", 0),
                entry.get("unmoved", 0),
                tuple(entry.get("raw") or ()),
            )
    return Loop()


def loose_of(view: View) -> list[SharedFate]:
    """Parameters that get a gradient and belong to no optimizer; told of the first optimizer."""
    loose = _facts(view).get("loose") if view.optimizer == view.first_optimizer else ()
    return [_group(entry) for entry in loose or ()]


def stale_of(view: View) -> SharedFate | None:
    """This optimizer's parameters that the trained model no longer has."""
    for entry in _facts(view).get("stale") or ():
        if entry.get("index") == view.optimizer:
            return _group(entry)
    return None


def logits_of(view: View) -> tuple[str, str] | None:
    """The loss, and the operation before it that does not belong there; None where all is well."""
    logits = _facts(view).get("logits")
    if not logits or view.optimizer != view.first_optimizer:
        return None
    return logits["loss"], logits["before"]


def targets_of(view: View) -> TargetFacts | None:
    """Targets that their loss does not take; told of the first optimizer."""
    targets = _facts(view).get("targets")
    return targets if targets and view.optimizer == view.first_optimizer else None


def criterion_of(view: View) -> str:
    """The name of the cross-entropy that trains; empty where it is another loss, or unknown."""
    return str(_facts(view).get("criterion") or "")


def broadcast_of(view: View) -> list[int]:
    """The shape of outputs that the loss compares with all targets; empty where it does not."""
    shape = _facts(view).get("broadcast") or []
    return shape if view.optimizer == view.first_optimizer else []


def sizes_of(view: View) -> SizeFacts | None:
    """How large a regression's targets and outputs were at first; told of the first optimizer."""
    sizes = _facts(view).get("sizes")
    return sizes if sizes and view.optimizer == view.first_optimizer else None


def summed_of(view: View) -> int:
    """Elements that the losses sum up and nothing divides by; told of the first optimizer."""
    summed: int = _facts(view).get("summed") or 0
    return summed * (view.optimizer == view.first_optimizer)


def optimizer_class(view: View) -> str:
    """The class of this optimizer in lower case; empty where unknown."""
    return str(view.facts.get("class", "")).lower()


def searches(view: View) -> bool:
    """Whether a step is a search of many updates, as that of LBFGS: how far it goes is no rate."""
    return "lbfgs" in optimizer_class(view)


def found_at_once(view: View) -> bool:
    """Whether such a search has brought the loss down in its very first steps, and it stays down.

    A window of several steps shows nothing of that.
    """
    losses = view.loss[np.isfinite(view.loss)]
    return searches(view) and len(losses) > 1 and 0 <= median(losses[1:]) < LEFT * losses[0]


def normalises(view: View) -> bool:
    """Whether the optimizer's step does not grow with its gradients."""
    name = optimizer_class(view)
    if any(word in name for word in NORMALISED):
        return True
    return name != "sgd" and move_alike(view)


def first_pace(view: View) -> float:
    """How far the first step moved the weights, as a part of their size; NaN where unknown.

    Reckoned from the rate, and from the first gradient where steps are as long as gradients are:
    for runs whose updates nobody sampled. Where the weights are not on record, as those of layers
    that keep the size of what they are given.
    """
    if len(view.sample("update_ratio")[0]) or not view.usable.any():
        return math.nan
    shapes = [tensor.shape for tensor in view.tensors]
    elements = sum(math.prod(shape) for shape in shapes)
    first = int(np.flatnonzero(view.usable)[0])
    length = math.sqrt(elements) if normalises(view) else float(view.norm[first])
    _, sizes = view.sample("weight_norm")
    drawn = sum(_drawn(shape) for shape in shapes)
    weights = math.sqrt(np.nansum(sizes[0] ** 2)) if len(sizes) else math.sqrt(drawn)
    return abs(float(view.lr[first])) * length / weights if weights > 0 else math.nan


def reckoned_paces(view: View) -> Array:
    """About how far a step of JAX moves each tensor, as a part of its size; NaN where unknown.

    Of updates that nobody sampled, where the weights are known before the first step. It is the
    most that it may be: a plain step may be lengthened by momentum. Gradients that lie below what
    their dtype can hold tell nothing of the rate.
    """
    _, sizes = view.sample("weight_norm")
    if not len(sizes) or view.framework != "jax":
        return np.full(len(view.tensors), np.nan)
    elements = np.sqrt([float(math.prod(tensor.shape)) for tensor in view.tensors])
    norms = MOMENTUM * columns_median(view.healthy_norms)
    gone = columns_median(view.zeros[view.good]) > UNDERFLOWN
    lengths = elements if normalises(view) else np.where(gone, np.nan, norms)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.nanmedian(np.abs(view.lr)) * lengths / sizes[0])


def _drawn(shape: tuple[int, ...]) -> float:
    """Squared norm of a matrix as Glorot and Bengio draw it; 0 for a vector."""
    if len(shape) < 2:
        return 0.0
    inputs, outputs = shape[-2], shape[-1]
    return 2 * math.prod(shape) / (math.prod(shape[:-2]) * (inputs + outputs))


def _facts(view: View) -> LoopFacts:
    facts: LoopFacts = view.info.get("loop") or {}
    return facts


def _group(entry: GroupFacts) -> SharedFate:
    return SharedFate(
        tuple(map(str, entry.get("names") or ())),
        int(entry.get("count", 0)),
        int(entry.get("elements", 0)),
        str(entry.get("container", "")),
        bool(entry.get("of_the_model", True)),
    )
