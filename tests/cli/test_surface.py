"""The command line changes only on purpose.

After a change that is meant: ``python tests/cli/test_surface.py > tests/cli/surface.json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner

from steadygrad.cli import group

SNAPSHOT = Path(__file__).with_name("surface.json")


def surface() -> dict[str, Any]:
    """Every subcommand's parameters: what can be typed, not how help words it."""
    context = click.Context(group)
    names = group.list_commands(context)
    commands = {name: group.get_command(context, name) for name in names}
    return {
        "steadygrad": parameters(group),
        **{name: parameters(command) for name, command in commands.items() if command},
    }


def parameters(command: click.Command) -> list[dict[str, Any]]:
    return [described(parameter) for parameter in command.params]


def described(parameter: click.Parameter) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "kind": "option" if isinstance(parameter, click.Option) else "argument",
        "type": parameter.type.name,
        "many": parameter.nargs != 1 or parameter.multiple,
        "required": parameter.required,
    }
    if isinstance(parameter, click.Option):
        facts["names"] = sorted([*parameter.opts, *parameter.secondary_opts])
        facts["flag"] = parameter.is_flag
    if isinstance(parameter.type, click.Choice):
        facts["choices"] = sorted(map(str, parameter.type.choices))
    return facts


def test_the_surface_is_the_one_that_was_meant() -> None:
    assert surface() == json.loads(SNAPSHOT.read_text())


def test_every_subcommand_says_what_it_does() -> None:
    for words in ([], *([name] for name in surface() if name != "steadygrad")):
        result = CliRunner().invoke(group, [*words, "--help"])
        assert result.exit_code == 0, words
        assert len(result.output.splitlines()) > 4, words


if __name__ == "__main__":
    json.dump(surface(), sys.stdout, indent=1, sort_keys=True)
    print()
