"""What recovery may do, as one frozen object and as a spec string.

A spec names rungs, chained by ``+`` as clip methods are: ``"skip:2+rollback:4"``. A rung that is
not named is not climbed. ``auto`` is all of them; ``palm`` is the recipe of PaLM (Chowdhery et al.,
2022, section 5.1): back about 100 steps, then leave out 200 to 500 batches.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from steadygrad.errors import SpecError, UsageError

AUTO, PALM = "auto", "palm"


@dataclass(frozen=True)
class Ladder:
    """What may be done when a training is struck, gentlest first.

    Attributes:
        skip: struck steps in a row that are dropped before the next rung; 0 drops none alone.
        shrink: steps after a dropped one in which no norm may exceed its usual size; 0 for none.
        rollback: how often the training may go back to a snapshot; 0 for never.
        back: a rollback goes back at least this many steps.
        leave_out: batches that are left out after a rollback.
        lower_lr: factor on the learning rate after a second rollback in short time, once more
            for each further one; 1 for none.
        lr_steps: for how many steps.
        rule: what a spike is: ``robust`` (medians) or ``olmo`` (mean and standard deviation).
        window: sound steps that a step is compared with.
        sigma: deviations over which a value is a spike.
        stride: steps between snapshots; 0 finds one that costs at most 1 % of a step's time.
        keep: snapshots held.
        memory: most bytes for them; 0 for half of the machine's memory.
        folder: where snapshots are written too; empty for nowhere.

    Raises:
        UsageError: a figure is out of its range.

    Example:
        >>> Ladder(skip=1, rollback=4).spec()
        'skip:1+rollback:4'
    """

    skip: int = 0
    shrink: int = 0
    rollback: int = 0
    back: int = 0
    leave_out: int = 0
    lower_lr: float = 1.0
    lr_steps: int = 100
    rule: str = "robust"
    window: int = 128
    sigma: float = 8.0
    stride: int = 0
    keep: int = 3
    memory: int = 0
    folder: str = ""

    def __post_init__(self) -> None:
        whole = ("skip", "shrink", "rollback", "back", "leave_out", "stride", "memory")
        for name in whole:
            if getattr(self, name) < 0:
                raise UsageError(f"recover: {name} must be 0 or more, got {getattr(self, name)}")
        if self.rule not in ("robust", "olmo"):
            raise UsageError(f"recover: spike must be robust or olmo, got {self.rule!r}")
        if self.window < 16 or self.keep < 1 or self.lr_steps < 1:
            raise UsageError(
                "recover: window must be at least 16, keep and steps at least 1; got "
                f"{self.window}, {self.keep} and {self.lr_steps}"
            )
        if not 0.0 < self.lower_lr <= 1.0:
            raise UsageError(f"recover: lower_lr must be over 0, at most 1, got {self.lower_lr}")
        if not self.sigma > 0.0 or math.isinf(self.sigma):
            raise UsageError(f"recover: sigma must be a number over 0, got {self.sigma}")
        if not (self.skip or self.rollback):
            raise UsageError("recover: name skip or rollback, for example 'skip:2+rollback:4'")

    def spec(self) -> str:
        """The spec that `parse_ladder` reads back."""
        usual = Ladder(skip=1)
        parts = []
        for rung, keys in _RUNGS.items():
            main, *others = keys.values()
            values = {f: getattr(self, f) for f in keys.values()}
            if rung in ("skip", "shrink", "rollback") and not values[main]:
                continue
            if rung == "lower_lr" and self.lower_lr == 1.0:
                continue
            options = [
                f"{key}={_text(values[f])}"
                for key, f in keys.items()
                if f in others and values[f] != getattr(usual, f)
            ]
            if (
                rung in ("spike", "snapshots")
                and values[main] == getattr(usual, main)
                and not options
            ):
                continue
            parts.append(f"{rung}:{','.join([_text(values[main]), *options])}".rstrip(":"))
        return "+".join(parts)


_RUNGS: dict[str, dict[str, str]] = {
    "skip": {"times": "skip"},
    "shrink": {"steps": "shrink"},
    "rollback": {"times": "rollback", "back": "back", "leave_out": "leave_out"},
    "lower_lr": {"factor": "lower_lr", "steps": "lr_steps"},
    "spike": {"rule": "rule", "window": "window", "sigma": "sigma"},
    "snapshots": {"folder": "folder", "stride": "stride", "keep": "keep", "memory": "memory"},
}
"""Rung -> word in a spec -> field; the first word may be left out."""

_USUAL = {"skip": "2", "shrink": "32", "rollback": "8", "lower_lr": "0.5"}
"""What a rung that is only named means."""

_PRESETS: Mapping[str, Ladder] = {
    AUTO: Ladder(skip=2, shrink=32, rollback=8, lower_lr=0.5),
    PALM: Ladder(rollback=8, back=100, leave_out=300),
}


def parse_ladder(recover: str | Ladder) -> Ladder:
    """The ladder that a spec means.

    Args:
        recover: ``"auto"``, ``"palm"``, rungs such as ``"skip:2+rollback:4,back=50"``, a preset
            with rungs that change it (``"auto+snapshots:folder"``), or a `Ladder`.

    Returns:
        The ladder.

    Raises:
        SpecError: says which part was not understood, and what there is.

    Example:
        >>> parse_ladder("skip:1+rollback:4,back=50")
        Ladder(skip=1, shrink=0, rollback=4, back=50, leave_out=0, lower_lr=1.0, lr_steps=100, \
rule='robust', window=128, sigma=8.0, stride=0, keep=3, memory=0, folder='')
        >>> parse_ladder("palm").back, parse_ladder("auto+snapshots:stride=20").stride
        (100, 20)
    """
    if isinstance(recover, Ladder):
        return recover
    if not isinstance(recover, str):
        raise SpecError(f"recover must be a spec such as 'auto', or a Ladder; got {recover!r}")
    rungs = [part.strip() for part in re.split(r"\+(?=\s*[A-Za-z])", recover.strip())]
    preset = _PRESETS.get(rungs[0])
    arguments: dict[str, int | float | str] = {}
    for rung in rungs if preset is None else rungs[1:]:
        arguments |= _arguments(rung, recover)
    if arguments.get("rule") == "olmo":
        arguments.setdefault("sigma", 6.0)
    ladder = Ladder(skip=1) if preset is None else preset
    if preset is None:
        arguments.setdefault("skip", 0)
    return replace(ladder, **arguments)  # type: ignore[arg-type]


def _arguments(rung: str, spec: str) -> dict[str, int | float | str]:
    name, _, rest = rung.partition(":")
    if name not in _RUNGS:
        raise SpecError(
            f"recover spec {spec!r}: no rung named {name!r}; there are auto, palm, "
            f"{', '.join(_RUNGS)}. Type for example 'skip:2+rollback:4'"
        )
    keys = _RUNGS[name]
    main = next(iter(keys))
    read: dict[str, int | float | str] = {}
    texts = [part.strip() for part in rest.split(",") if part.strip()]
    if not any("=" not in text or text.startswith(f"{main}=") for text in texts):
        texts += [f"{main}={_USUAL[name]}"] if name in _USUAL else []
    for text in texts:
        key, equals, value = text.partition("=")
        key, value = (key.strip(), value.strip()) if equals else (main, text)
        if key not in keys:
            raise SpecError(f"recover spec {spec!r}: {name} has no {key!r}; it has {[*keys]}")
        read[keys[key]] = _convert(keys[key], value, spec)
    return read


def _convert(field: str, text: str, spec: str) -> int | float | str:
    kind = {f.name: f.type for f in fields(Ladder)}[field]
    try:
        if field == "memory":
            return _bytes(text)
        return text if kind == "str" else float(text) if kind == "float" else int(text)
    except ValueError:
        raise SpecError(f"recover spec {spec!r}: {field} must be a {kind}, got {text!r}") from None


def _bytes(text: str) -> int:
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    match = re.fullmatch(r"([\d.]+)\s*([KMGT]?)(i?B)?", text)
    if match is None:
        raise ValueError(text)
    return int(float(match[1]) * units[match[2]])


def _text(value: float | str) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
