"""The words that cross layers: what is written by one and read by another.

Each set of words is a `Literal`, so that mypy tells a word that is none of them, and a tuple
where their order or their number is asked for. The words stand in run files: they do not change.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

Action: TypeAlias = Literal["none", "clip", "skip"]
"""What was done with a step's gradients."""

ACTIONS: tuple[Action, ...] = ("none", "clip", "skip")
"""Their order is their code in run files and in code that is traced."""

OnNonfinite: TypeAlias = Literal["skip", "raise", "zero", "propagate"]
"""What is done with gradients that hold NaN or inf."""

ON_NONFINITE: tuple[OnNonfinite, ...] = ("skip", "raise", "zero", "propagate")

Figure: TypeAlias = Literal["norms", "max_abs", "nonfinite", "zeros"]
"""What one read of a gradient tells."""

FIGURES: tuple[Figure, ...] = ("norms", "max_abs", "nonfinite", "zeros")
"""In the order of rows of figures wherever they are packed."""

Sample: TypeAlias = Literal[
    "activation_saturated",
    "activation_std",
    "activation_zero",
    "recurrent_steps",
    "spectral_radius",
    "unusual_update",
    "update_ratio",
    "weight_norm",
    "weight_std",
]
"""A figure of each tensor beyond its gradient, measured at some steps only."""

Phase: TypeAlias = Literal["forward", "loss", "backward", "input", "weights", "scale", "unknown"]
"""Where a NaN or inf was made: inside a module, between modules and `backward`, in a backward
function, in data that entered, in parameters or buffers, by the loss scale; or not found."""

RecoveryAct: TypeAlias = Literal[
    "skip",
    "leave out",
    "rollback",
    "accept",
    "stop",
    "restore",
    "restart",
    "shrink",
    "lower rate",
]
"""What recovery did; `steadygrad.recovery.events.ACTS` says what each means."""

Trigger: TypeAlias = Literal[
    "loss not finite",
    "gradients not finite",
    "weights not finite",
    "norm spike",
    "loss spike",
    "statistics jump",
    "sustained divergence",
    "too hot from the start",
]
"""What struck a step, so that recovery acted."""

Nature: TypeAlias = Literal["persistent", "transient", "unknown"]
"""What a replay says of a NaN or inf: made again, not made again, or it could not be replayed."""

RECOVERY: Final = "recovery"
"""Kind of the event that holds a `RecoveryEvent`."""

LADDER: Final = "recovery_ladder"
"""Kind of the event that says what recovery may do, and where its snapshots are."""

NAN_LOSS: Final = "nan_loss"
"""Kind of the event that says: from this step on, a NaN loss is a loss that was NaN."""

NAN_ORIGIN: Final = "nan_origin"
"""Kind of the event that holds an `Origin`."""

SCRIPT_CLIP: Final = "script_clip"
"""Kind of the event of one call of a clip function by the script."""

ALERT: Final = "alert"
"""Kind of the event that holds a finding that was told while the run went on."""

RANKS: Final = "ranks"
"""Kind of the event that holds what several ranks told of some steps."""

GAP: Final = "gap"
"""Kind of the event that says which steps found no room in the queue."""

THROUGH_TIME: Final = "through_time"
"""Kind of the event that holds the gradient at each time step of a recurrent layer."""
