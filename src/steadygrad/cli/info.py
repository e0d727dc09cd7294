"""`steadygrad info`: what is installed here, and what to type where something is missing."""

from __future__ import annotations

import click


@click.command()
def command() -> None:
    """Say what is installed here: versions, the compiled kernel, frameworks.

    Nothing is imported for it. The lines are for reading, and for a bug report.
    """
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from steadygrad import extensions
    from steadygrad._version import __version__

    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    click.echo(f"steadygrad    {__version__}")
    click.echo(f"python        {platform.python_version()} on {platform.platform()}")
    click.echo(f"kernel        {extensions.state(extensions.READ)} (PyTorch)")
    click.echo(f"              {extensions.state(extensions.XLA)} (JAX)")
    for package in ("numpy", "torch", "tensorflow", "keras", "jax", "optax"):
        click.echo(f"{package:<13} {installed(package)}")
    slow = extensions.advice(extensions.install_state())
    if slow:
        click.echo(f"\n{slow}")
