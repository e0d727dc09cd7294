"""The last words of `steadygrad run`: what happened, what to change, what to type next.

Loaded when the script is over. Everything said here is read back from the run file,
so that `report` and `diagnose` say the same later; of a script that trained nothing there is
nothing to read, and NumPy is not loaded for it.
"""

from __future__ import annotations

import glob
import math
import os
import shlex
import textwrap
from typing import TYPE_CHECKING

from steadygrad.errors import CalibrationError, SteadyGradError
from steadygrad.paths import as_typed
from steadygrad.text import listed, printable

if TYPE_CHECKING:
    from steadygrad.calibration import Calibration
    from steadygrad.launch.contracts import EndedRun
    from steadygrad.rules import Finding
    from steadygrad.runlog import Run

WIDTH = 96
MOST_FINDINGS = 5
MOST_EVIDENCE = 3
MOST_OPTIMIZERS = 3
SHORT = 0.5
"""Seconds of a training under which a share in per cent says little."""


def last_words(session: EndedRun) -> str:
    """Everything that is said when a run is over.

    Args:
        session: the run, its file closed.

    Returns:
        Lines to print.
    """
    path, others = session.path, _other_files(session)
    path = path if os.path.exists(path) else _of_job(session)
    if path or others:
        from steadygrad import extensions
        from steadygrad.runlog.thinning import thinned

        whole = _open(path or others[0])
        run = thinned(whole)
        lines = _explained(run, session)
        lines += _wrapped(of_thinning(run, whole), "  ", "    ")
        if others:
            lines += _wrapped(_of_others(path, others), "  ", "    ")
        lines.append(f"  {own_cost(run, session)}")
        slow = extensions.advice(str(run.info.get("kernel", "")))
        lines += _wrapped(slow, "  ", "    ") if slow else []
    else:
        lines = _wrapped(nothing_seen(session), "", "  ")
    for what in session.troubles:
        lines += _wrapped(f"Mind: {what}", "  ", "    ")
    if path or others:
        lines.append(f"Next: steadygrad report {as_typed(path or others[0])}")
    return str(printable("\n".join(["steadygrad: " + lines[0], *lines[1:]])))


def _of_job(session: EndedRun) -> str:
    """The file of a job whose processes the script started; empty where there is none."""
    path = session.plan.out
    recent = os.path.exists(path) and os.path.getmtime(path) >= session.began - 1
    return path if recent else ""


def of_thinning(run: Run, whole: Run) -> str:
    """What was read of a long run, as a sentence; empty where that is everything."""
    if run is whole:
        return ""
    return (
        f"The run has {len(whole):,} steps. To end soon, {len(run):,} were read for these words: "
        "the first and last, the largest norm, the first NaN or inf, and stretches between. "
        f"All are read by: steadygrad diagnose {as_typed(str(whole.path))}"
    )


def _open(path: str) -> Run:
    from steadygrad.runlog import open_run

    return open_run(path)


def _explained(run: Run, session: EndedRun) -> list[str]:
    from steadygrad.report.headline import verdict
    from steadygrad.rules import diagnose
    from steadygrad.runlog.origin import Origin
    from steadygrad.vocabulary import NAN_ORIGIN

    findings = diagnose(run)
    judgement = verdict(run, findings)
    lines = _wrapped(judgement.sentence, "", "  ")
    for event in run.events:
        if event.kind == NAN_ORIGIN:
            origin = Origin.from_json(event.data)
            lines += _wrapped(f"NaN origin: {origin}", "  ", "    ")
    for finding in findings[:MOST_FINDINGS]:
        lines += _finding(finding, judgement.sentence)
    if len(findings) > MOST_FINDINGS:
        lines.append(f"  and {len(findings) - MOST_FINDINGS} more findings, in the report")
    return lines + threshold(run, session)


def _finding(finding: Finding, said: str) -> list[str]:
    title = "" if said.startswith(finding.title.rstrip(".")) else f": {finding.title}"
    lines = _wrapped(f"{finding.id} {finding.severity}{title}", "  ", "    ")
    for evidence in finding.evidence[:MOST_EVIDENCE]:
        lines += _wrapped(f"- {evidence}", "    ", "      ")
    if finding.fixes:
        code = finding.fixes[0].strip().splitlines()
        lines += ["    fix:", *(f"      {line}" for line in code)]
    return lines


def threshold(run: Run, session: EndedRun) -> list[str]:
    """A threshold for each optimizer, from its steps alone, as lines."""
    from steadygrad.report.optimizers import name_of, rows_of_each

    numbers = list(rows_of_each(run))
    if len(numbers) == 1:
        lines, calibration = _recommended(run, numbers[0], "")
        specs = [calibration.spec] if calibration is not None and calibration.needed else []
    else:
        lines, specs = [], []
        for number in numbers[:MOST_OPTIMIZERS]:
            sentences, calibration = _recommended(run, number, f"{name_of(run, number)}: ")
            lines += sentences
            specs += [calibration.spec] if calibration is not None and calibration.needed else []
        if len(numbers) > MOST_OPTIMIZERS:
            lines.append(f"  and {len(numbers) - MOST_OPTIMIZERS} more optimizers, in the report")
        if specs and (len(specs) < len(numbers) or len(set(specs)) > 1):
            specs = ["auto"]  # --clip is for all: what follows each one's own norms
    if specs and session.plan.clip is None and not session.plan.cell:
        lines.append(f"    try: {_again(session, specs[0])}")
    return lines


def _recommended(run: Run, number: int, whose: str) -> tuple[list[str], Calibration | None]:
    from steadygrad.calibration import calibrate
    from steadygrad.calibration.advice import label

    try:
        calibration = calibrate(run, optimizer=number)
    except CalibrationError as error:
        return _wrapped(f"{whose}No threshold can be recommended: {error}", "  ", "    "), None
    except SteadyGradError as error:
        return _wrapped(f"{whose}No threshold: {error}", "  ", "    "), None
    what, value = label(calibration)
    return _wrapped(f"{whose}{what}: {value}. {calibration.advice[0]}", "  ", "    "), calibration


def _kind(session: EndedRun) -> str:
    return "cell" if session.plan.cell else "script"


def _again(session: EndedRun, spec: str) -> str:
    from steadygrad.runlog.facts import BLOT

    plan = session.plan
    words = ["steadygrad", "run", "--clip", spec, *(["-m"] if plan.as_module else []), plan.target]
    arguments = plan.shown_arguments
    if any(BLOT in argument for argument in arguments):
        return " ".join(map(shlex.quote, words)) + " ...  # and its arguments, as before"
    return " ".join(map(shlex.quote, [*words, *arguments]))


def own_cost(run: Run, session: EndedRun) -> str:
    """What observing has cost, as a sentence."""
    overhead = float(run.info.get("overhead_seconds", 0.0))
    if math.isnan(overhead):
        whose = f"{_kind(session)}'s own steps"
        return f"What observing cost is not known: its work is a part of the {whose}."
    # a thread of ours may have waited for longer than the script ran
    own = max(float(run.info.get("wall_seconds", 0.0)) - overhead, 0.0)
    if session.plan.cell:  # short ones are not: what is loaded once would be their greatest part
        return f"Observing took {overhead:.1f} s beside the cell's own {own:.1f} s."
    if own < SHORT:
        return (
            f"Observing took {1000 * overhead:.0f} ms beside the script's own {1000 * own:.0f} ms."
        )
    share = 100 * overhead / max(own, 1e-9)
    return f"Observing cost {share:.1f} % of the script's {own:.1f} s."


def _of_others(path: str, others: list[str]) -> str:
    if path:
        return f"Processes that the script started have run files of their own: {_few(others)}."
    return f"The steps were taken by processes that the script started: {_few(others)}."


def nothing_seen(session: EndedRun) -> str:
    """Why no step was recorded."""
    if session.path:
        steps = sum(observer.steps for observer in session.observers)
        return f"{steps} steps seen, but not recorded: {session.path} could not be written."
    seen = sum(observer.backwards for observer in session.observers)
    if session.attached:
        reason = (
            f"the script attaches steadygrad to its {listed(sorted(session.attached))} itself, and "
            "no other optimizer stepped. Its steps are in the run file that "
            'attach(..., run="run.db") names; without run= they are in none.'
        )
    elif isinstance(session.exit, str) and session.exit != "ok" and not seen:
        reason = f"{session.exit} ended the {_kind(session)} before a backward pass or a step."
    elif "torch" in session.frameworks and seen:
        reason = (
            f"{seen} backward passes were seen, but no optimizer step and no update by hand after "
            "them. Weights that are made anew at each step (w = w - lr * grad) cannot be followed: "
            "update them in place, under torch.no_grad(). Nor can optimizers that move each weight "
            "during backward, as LOMO does. Nor is a step that is called by its class, as in "
            "torch.optim.SGD.step(optimizer): type optimizer.step()."
        )
    elif "tensorflow" in session.frameworks and seen:
        reason = (
            f"{seen} calls for gradients were seen, but no step of a Keras, tf_keras or "
            "tf.compat.v1 optimizer after them, and no update by hand (assign_sub) that can be "
            "followed to one call for gradients. Such updates clip as the script has it; apply "
            "them by keras.optimizers.SGD(rate).apply_gradients"
        )
    elif "keras" in session.frameworks:
        reason = (  # whatever the backend: Keras imports JAX for others, too
            "no optimizer of Keras took a step, in fit, train_on_batch or apply_gradients. The "
            "calls evaluate and predict take none, nor does a model without trainable weights. Of "
            "loops that are JAX's own, those by optax are seen; programs started by subprocess are "
            "not: start those by steadygrad run themselves."
        )
    elif session.plan.cell and "jax" in session.frameworks:
        reason = (
            "no optimizer stepped that can be seen. One of optax is seen where the observed cell "
            "makes it: optax.adam(...), its init and the loop belong into one cell"
        )
    elif any(getattr(observer, "vmapped", False) for observer in session.observers):
        reason = "the optimizer stands inside of jax.vmap, where it cannot be seen."
    elif "jax" in session.frameworks and "tensorflow" not in session.frameworks:
        reason = (
            "no optimizer of optax was called, and a JAX loop that updates its weights by itself "
            "shows nothing from outside. Build an optimizer as "
            "steadygrad.jax.guard(optax.sgd(lr), clip='none') and add one line to the loop: "
            "steadygrad.jax.record('run.db', opt_state, loss)"
        )
    elif {"torch", "tensorflow"} & set(session.frameworks):
        reason = (
            "no backward pass, no optimizer step. Programs started by subprocess cannot be seen; "
            "start those by steadygrad run themselves."
        )
    else:
        reason = f"the {_kind(session)} imported neither torch, nor tensorflow, nor keras, nor jax."
    clip = session.plan.clip
    unclipped = "" if clip is None else f"--clip {clip} has clipped nothing, and "
    return f"0 steps seen, so {unclipped}nothing can be said of this run: {reason}"


def _other_files(session: EndedRun) -> list[str]:
    """Run files that processes started by the script have written."""
    stem, extension = os.path.splitext(session.plan.out)
    paths = glob.glob(f"{glob.escape(stem)}-*{extension}")
    return sorted(
        f for f in paths if os.path.getmtime(f) >= session.began - 1 and f != session.path
    )


def _few(paths: list[str]) -> str:
    shown = ", ".join(as_typed(path) for path in paths[:4])
    return shown if len(paths) <= 4 else f"{shown} and {len(paths) - 4} more"


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False
    )
