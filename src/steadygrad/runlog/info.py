"""The facts of a run as its file holds them: JSON values by name, none of which must be there.

Whoever writes a run may add facts of their own; those here are what steadygrad reads again.
"""

from __future__ import annotations

from typing import Any, TypedDict

OptimizerFacts = TypedDict(
    "OptimizerFacts",
    {"class": str, "index": int, "framework": str, "eps": float, "weight_decay": float},
    total=False,
)
"""One optimizer: its class's name, its number within the run, what it is of where a script may use
several libraries (as the run's own ``framework``), and settings that explain a step."""


class LoopCounts(TypedDict, total=False):
    """How a script handles one optimizer's gradients; see `rules.evidence.loop.Loop`."""

    index: int
    judged: int
    held: int
    emptied: int
    passes: int
    undivided: int
    renewed: int
    unmoved: int
    raw: list[str]


class GroupFacts(TypedDict, total=False):
    """Parameters with the same fault; see `rules.evidence.loop.SharedFate`."""

    names: list[str]
    count: int
    elements: int
    container: str
    of_the_model: bool
    index: int


class LogitsFacts(TypedDict):
    """A loss that takes logits, and the operation before it that leaves none."""

    loss: str
    before: str


class TargetFacts(TypedDict):
    """A loss whose targets are outside of the range that it takes, and theirs."""

    loss: str
    lowest: float
    highest: float


class SizeFacts(TypedDict):
    """A regression's loss, the root mean squares of its first targets and outputs, and the
    targets' standard deviation."""

    loss: str
    targets: float
    spread: float
    outputs: float


class LoopFacts(TypedDict, total=False):
    """What the first steps showed of a script's loop."""

    optimizers: list[LoopCounts]
    loose: list[GroupFacts]
    stale: list[GroupFacts]
    logits: LogitsFacts | None
    targets: TargetFacts | None
    broadcast: list[int]
    sizes: SizeFacts | None
    criterion: str
    chains: list[list[str]]
    summed: int


class LintFact(TypedDict):
    """What `steadygrad lint` found in the script's source."""

    path: str
    line: int
    id: str


class StoppedFacts(TypedDict):
    """How many steps are on record of at least how many where recording stopped, and why."""

    recorded: int
    steps: int
    reason: str


class RunInfo(TypedDict, total=False):
    """Facts about a run as a whole.

    Attributes:
        steadygrad: the version that wrote the file.
        python: its version.
        platform: the operating system.
        command: the command line, without what may be secret.
        started: seconds since the Unix epoch.
        ended: likewise; missing while the run is written, or where it was killed.
        exit: ``ok``, a code, the name of the exception that ended the script, or ``stopped``.
        stopped_by: what was found where an alert ended it.
        wall_seconds: from the start of recording to its end.
        overhead_seconds: what recording cost the training's thread; NaN where it cannot be known.
        kernel: which form of the C core is installed.
        framework: ``torch``, ``keras``, ``tensorflow`` or ``jax``; of several in one script the one
            that told last. Each optimizer has its own.
        backend: what Keras ran on.
        versions: package to version.
        device: what the parameters were on.
        seed: what the random numbers were seeded with.
        amp: whether a loss was scaled.
        threads: of the framework's pool.
        script: the path of the script, or the module.
        process: which of several processes of a script this is.
        rank: the process's number in a distributed training.
        ranks: how many processes that has.
        restart: how often its launcher started it anew.
        ranks_ended: how the script ended on other ranks.
        observed_by: ``run``, ``cell``, ``attach``, ``record`` or the trainer's callback.
        policy: the spec of the clipping method.
        on_nonfinite: what was done with non-finite steps.
        optimizers: one entry each.
        models: class names of the script's modules.
        frozen: numbers of tensors that need no gradient.
        clip_calls: what the script's own clip calls had in common.
        loop: what the first steps showed.
        lint: what the source shows.
        results: what the script measured at its end, as it printed it.
        troubles: what could not be observed.
        sampling_ended: why no more samples were taken.
        landmarks: rows that a short view of the run must show.
        recording_stopped: how many steps are on record where a disk ended that, and why.
    """

    steadygrad: str
    python: str
    platform: str
    command: list[str] | str
    started: float
    ended: float
    exit: str | int
    stopped_by: str
    wall_seconds: float
    overhead_seconds: float
    kernel: str
    framework: str
    backend: str
    versions: dict[str, str]
    device: str
    seed: int
    amp: bool
    threads: int
    script: str
    process: str
    rank: int
    ranks: int
    restart: int
    ranks_ended: list[str]
    observed_by: str
    policy: str
    on_nonfinite: str
    optimizers: list[OptimizerFacts]
    models: list[str]
    frozen: list[int]
    clip_calls: list[dict[str, Any]]
    loop: LoopFacts
    lint: list[LintFact]
    results: dict[str, object]
    troubles: list[str]
    sampling_ended: str
    landmarks: dict[str, object]
    recording_stopped: StoppedFacts
