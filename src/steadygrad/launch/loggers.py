"""The loggers of an observed run, opened together with its run file."""

from __future__ import annotations

import os

from steadygrad.launch.plan import Plan
from steadygrad.paths import with_suffix
from steadygrad.runlog import RunWriter
from steadygrad.sinks import Sink, open_sink
from steadygrad.sinks.opening import read_spec

ALERTS = "alerts"


def add_loggers(writer: RunWriter, plan: Plan, rank: int | None) -> None:
    """Send a run to the loggers that its plan names.

    Args:
        writer: of the run file.
        plan: what was asked for.
        rank: this process's, or None. Only rank 0 sends: the loggers show one run.
    """
    if rank:
        return
    for sink in _opened(plan):
        if sink.suffix:
            sink.target = _path_of(sink, plan, os.fspath(writer.path))
        writer.add_sink(sink)


def _opened(plan: Plan) -> list[Sink]:
    kinds = [read_spec(spec)[:2] for spec in plan.logs]
    sinks = [
        open_sink(spec) for spec, (kind, _) in zip(plan.logs, kinds, strict=True) if kind != ALERTS
    ]
    addresses = [address for kind, address in kinds if kind == ALERTS]
    if addresses or plan.stop_on:
        from steadygrad.sinks.listeners.alerts import Alerts

        # one of several speaks; where none was asked for, the end itself says why
        sinks.append(
            Alerts(
                tuple(filter(None, addresses)),
                quiet=not addresses,
                on=plan.alert_on,
                stop_on=plan.stop_on,
            )
        )
    return sinks


def _path_of(sink: Sink, plan: Plan, run_file: str) -> str:
    """Where a sink writes: beside the run file unless named, a file of its own for a child."""
    if not sink.target:
        return os.path.splitext(run_file)[0] + sink.suffix
    path = os.path.join(plan.folder, sink.target)
    return with_suffix(path, plan.process) if plan.process else path
