"""`steadygrad run`: observe a training script that knows nothing of steadygrad."""

from __future__ import annotations

import os

import click

from steadygrad.cli import Handover


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--clip", metavar="SPEC", help="Replace the script's own clip calls, e.g. norm:1.0.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False),
    metavar="RUN.db",
    help="The run file to write; default: a fresh name in the current folder.",
)
@click.option(
    "--on-nonfinite",
    type=click.Choice(["skip", "raise", "zero", "propagate"]),
    help="What to do with NaN and inf gradients; default: skip with --clip, else propagate.",
)
@click.option(
    "--find-nan",
    is_flag=True,
    help="Replay the first step with a NaN or inf, and name the operation and line. PyTorch only.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    metavar="N",
    help="Shift the script's random seeds; the same N gives the same run. Default: as written.",
)
@click.option(
    "--resume",
    type=click.Path(exists=True, dir_okay=False),
    metavar="RUN.db",
    help="Hand SCRIPT the snapshots of that run, for its own steady.restore(). PyTorch only.",
)
@click.option(
    "--log",
    "logs",
    multiple=True,
    metavar="SINK",
    help="Send every step to a logger too, e.g. tensorboard:logs or wandb:project. Repeatable.",
)
@click.option(
    "--alert",
    "alerts",
    metavar="terminal|URL",
    multiple=True,
    help="Tell of errors while the script runs: on standard error, and to a webhook or service at "
    "URL. Repeatable.",
)
@click.option(
    "--alert-on",
    type=click.Choice(["error", "warning"]),
    default="error",
    show_default=True,
    help="The least severity that --alert tells of.",
)
@click.option(
    "--stop-on",
    type=click.Choice(["error", "warning"]),
    help="End the script at a finding at least as grave; the run file says why.",
)
@click.option(
    "--record-arguments",
    is_flag=True,
    help="Record SCRIPT's arguments as they are; default: only those that cannot be secrets.",
)
@click.option("-q", "--quiet", is_flag=True, help="No words at the end.")
@click.option("--force", is_flag=True, help="Replace a run file that exists.")
@click.option("-m", "as_module", is_flag=True, help="SCRIPT is a module, as after python -m.")
@click.argument("script")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(
    clip: str | None,
    out: str | None,
    on_nonfinite: str | None,
    find_nan: bool,
    seed: int | None,
    resume: str | None,
    logs: tuple[str, ...],
    alerts: tuple[str, ...],
    alert_on: str,
    stop_on: str | None,
    record_arguments: bool,
    quiet: bool,
    force: bool,
    as_module: bool,
    script: str,
    arguments: tuple[str, ...],
) -> None:
    """Run SCRIPT with its ARGUMENTS, observe every optimizer step, and say what to change.

    Options of steadygrad stand before SCRIPT; everything after it is the script's own.
    Without --clip the script computes exactly what it would have computed.
    """
    if clip is not None:
        from steadygrad.policies import parse

        parse(clip)
    if as_module or not os.path.isfile(script) or os.access(script, os.X_OK):
        _refuse_launcher(script, arguments, as_module)
    if not as_module and not os.path.isfile(script):
        raise click.UsageError(_no_script(script))
    if resume is not None:
        from steadygrad.launch.resuming import hand_over

        hand_over(resume)
    from steadygrad.launch.plan import Plan

    plan = Plan(
        target=script,
        arguments=(*_from_launcher(), *arguments),
        as_module=as_module,
        out=_output(out, force),
        clip=clip,
        on_nonfinite=on_nonfinite,
        find_nan=find_nan,
        seed=seed,
        resumes=resume is not None,
        logs=(*logs, *_alerts(logs, alerts)),
        alert_on=alert_on,
        stop_on=stop_on,
        folder=os.getcwd(),
        record_arguments=record_arguments,
        quiet=quiet,
        force=force,
    )
    from steadygrad.launch.session import launch

    raise Handover(lambda: launch(plan))


def _refuse_launcher(script: str, arguments: tuple[str, ...], as_module: bool) -> None:
    from steadygrad.launch.launchers import command_behind_launcher

    behind = command_behind_launcher(_options_typed(), script, arguments, as_module)
    if behind:
        raise click.UsageError(
            f"{script} starts the script in processes of its own, which are not seen from here; "
            f"steadygrad stands behind it: {behind}"
        )


def _options_typed() -> list[str]:
    """The options of this command as they were typed, without ``-m``."""
    from click.core import ParameterSource

    context = click.get_current_context()
    words: list[str] = []
    for option in context.command.params:
        name = str(option.name)
        by_hand = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if not isinstance(option, click.Option) or name == "as_module" or not by_hand:
            continue
        value = context.params[name]
        for each in value if isinstance(value, tuple) else [value]:
            if each is True:
                words.append(option.opts[-1])
            else:
                words += [option.opts[-1], str(each)]
    return words


def _from_launcher() -> tuple[str, ...]:
    """What the launcher put before the script's own arguments."""
    local_rank: tuple[str, ...] = click.get_current_context().obj or ()
    return local_rank


def _output(out: str | None, force: bool) -> str:
    from steadygrad.launch.plan import default_output, rank_of

    if out is None:
        return default_output()
    path = os.path.abspath(out)
    alone = rank_of(os.environ) is None
    if os.path.exists(path) and not force and alone and not _goes_on(path):
        raise click.UsageError(
            f"{out} exists already and is not overwritten: name another --out, or add --force"
        )
    return path


def _goes_on(path: str) -> bool:
    """Whether an earlier start of this process's job has written that file."""
    from steadygrad.elastic import job

    if not job():
        return False
    from steadygrad.runlog.continuing import file_of_job  # which loads NumPy

    return bool(file_of_job([path]))


def _alerts(logs: tuple[str, ...], alerts: tuple[str, ...]) -> list[str]:
    """Specs of the alerts asked for, after a look at all that a spec can be wrong in."""
    if not logs and not alerts:
        return []
    from steadygrad.errors import UsageError
    from steadygrad.sinks.addresses import check_address
    from steadygrad.sinks.opening import read_spec

    for spec in logs:
        kind, target, _ = read_spec(spec)
        if kind == "alerts" and target:
            check_address(target)
    for alert in alerts:
        if alert != "terminal":
            try:
                check_address(alert)
            except UsageError as error:
                raise click.UsageError(
                    "--alert takes the word terminal, the http(s) address of a webhook, or the "
                    f"address of a service: {error}"
                ) from error
    return ["alerts" if alert == "terminal" else f"alerts:{alert}" for alert in alerts]


def _no_script(script: str) -> str:
    if os.path.isdir(script):
        return f"{script} is a folder; name a script in it, or type: steadygrad run -m {script}"
    return (
        f"there is no script {script} in {os.getcwd()}; options of steadygrad stand before it: "
        "steadygrad run [options] script.py [its arguments]"
    )
