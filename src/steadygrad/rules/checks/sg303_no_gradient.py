"""SG303: parameters that an optimizer holds and that never get a gradient."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from steadygrad.rules.advice import code, jax_frozen
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.view import View
from steadygrad.rules.finding import Finding


def check(view: View) -> Iterator[Finding]:
    if len(view) < 3 or not len(view.order):
        return
    measured = (~np.isnan(view.norms) | (view.figures("nonfinite") > 0)).any(axis=0)
    frozen = set(view.info.get("frozen") or ())
    missing = [int(i) for i in np.flatnonzero(~measured) if int(view.order[i]) not in frozen]
    if missing and measured.any():
        yield _finding(view, missing)


def _finding(view: View, missing: list[int]) -> Finding:
    names = [view.tensors[i].name for i in missing]
    count = sum(int(np.prod(view.tensors[i].shape)) for i in missing)
    total = sum(int(np.prod(t.shape)) for t in view.tensors)
    ran = any(t.position >= 0 for t in view.tensors)
    idle = [n for n, i in zip(names, missing, strict=True) if ran and view.tensors[i].position < 0]
    where = [f"No graph of a loss that was seen leads to {', '.join(idle[:4])}."] if idle else []
    return finding(
        view,
        "SG303",
        "warning",
        0.92,
        f"{len(names)} of {len(view.tensors)} parameters never get a gradient: {names[0]}"
        + (" and others." if len(names) > 1 else "."),
        evidence=[
            f"In {len(view)} steps no gradient was ever there for {', '.join(names[:6])} "
            f"({count} of {total} elements).",
            *where,
        ],
        steps=[int(view.step[0]), int(view.step[-1])],
        tensors=names[:8],
        causes=[
            "a detach(), .data, no_grad(), a NumPy round trip or a re-entrant checkpoint whose "
            "inputs need no gradient cuts the graph before them",
            "the module is made, and never called in forward()",
            "they were meant to be frozen, and stayed in the optimizer",
        ],
        fixes=_fixes(view, names),
        figures={"tensors": len(names), "elements": count},
    )


def _fixes(view: View, names: list[str]) -> list[str]:
    """What shows where the graph is cut; and what to type where nothing is to move."""
    listed = "".join(f'"{name}", ' for name in names[:8])
    more = f"  # and {len(names) - 8} more" if len(names) > 8 else ""
    meant_to_train = code(
        view,
        torch="# meant to train: look for detach(), .data, .item(), no_grad() on the way;\n"
        "# after loss.backward() this must hold:\n"
        f'assert dict(model.named_parameters())["{names[0]}"].grad is not None',
        keras="# meant to train: call the layer in call(), and look for stop_gradient on the way",
        jax="# meant to train: look for jax.lax.stop_gradient on the way",
    )
    meant_to_stay = code(
        view,
        torch=f"# meant to stay:\nfor name in ({listed.rstrip()}):{more}\n"
        "    dict(model.named_parameters())[name].requires_grad_(False)",
        keras="layer.trainable = False  # if meant to stay",
        jax=jax_frozen("meant to stay", "stay"),
    )
    return [meant_to_train, meant_to_stay]


RULE = Rule("SG303", "parameters that never get a gradient", check)
