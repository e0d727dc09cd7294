"""SG603: parameters that get gradients and belong to no optimizer: they never move."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.rules.advice import code
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.loop import SharedFate, loose_of
from steadygrad.rules.evidence.view import View
from steadygrad.rules.finding import Finding


def check(view: View) -> Iterator[Finding]:
    groups = loose_of(view)
    hidden = [group for group in groups if group.container]
    for group in hidden[:1] or groups[:1]:
        yield _finding(view, group)


def _finding(view: View, group: SharedFate) -> Finding:
    hidden = bool(group.container)
    many = f"{group.count} parameters" if group.count > 1 else "1 parameter"
    title = (
        f"{group.container} is a plain container: {many} in it are in no Module.parameters(), so "
        "no optimizer has them."
        if hidden
        else f"{many} get{'s' * (group.count == 1)} gradients and belong to no optimizer: "
        f"{group.listed}."
    )
    name = group.container.rpartition(".")[2] or "layers"
    return finding(
        view,
        "SG603",
        "error" if hidden else "info",
        0.97 if hidden else 0.8,
        title,
        evidence=[
            f"A gradient reaches {group.listed} ({group.elements} elements) in every step that was "
            "looked at, and no optimizer of the script holds them: they keep their first values.",
        ],
        steps=[int(view.step[0])],
        tensors=list(group.names),
        causes=["a Python list or dict holds modules that an nn.ModuleList should hold"]
        if hidden
        else [
            "they are left out on purpose: then requires_grad_(False) saves their gradients",
            "the optimizer was made before these layers were unfrozen or added"
            if group.of_the_model
            else "an optimizer was given the parameters of another model: of two networks that "
            "train together, each needs its own",
        ],
        fixes=[_fix(view, name, hidden) if hidden or group.of_the_model else _its_own(view)],
        figures={"parameters": group.count, "elements": group.elements},
    )


def _its_own(view: View) -> str:
    """Of a whole network that no optimizer has."""
    return code(
        view,
        torch="optimizer = torch.optim.Adam(network.parameters(), lr)  # one of its own\n"
        "# or, where it is not to learn: network.requires_grad_(False)",
        keras="optimizer.apply(gradients, network.trainable_variables)",
        jax="opt_state = optimizer.init(params)  # of this network too",
    )


def _fix(view: View, name: str, hidden: bool) -> str:
    if hidden:
        return code(
            view,
            torch=f"self.{name} = nn.ModuleList(self.{name})  # in __init__, before the optimizer\n"
            f"# of parameters: nn.ParameterList(self.{name})",
            keras=f"self.{name} = layers  # keras tracks lists that are set in __init__",
            jax="params = {..., 'layers': layers_params}  # part of the tree that is optimised",
        )
    return code(
        view,
        torch="have = {id(p) for g in optimizer.param_groups for p in g['params']}\n"
        "new = [p for p in model.parameters() if p.requires_grad and id(p) not in have]\n"
        "optimizer.add_param_group({'params': new})  # or p.requires_grad_(False) for each",
        keras="optimizer.build(model.trainable_variables)",
        jax="opt_state = optimizer.init(params)  # of all parameters",
    )


RULE = Rule("SG603", "parameters that no optimizer holds", check, supersedes=("SG301", "SG302"))
