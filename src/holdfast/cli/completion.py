"""`holdfast completion`: print what makes the shell complete holdfast's commands."""

from __future__ import annotations

import os
from pathlib import Path

import click

from holdfast.cli import COMPLETE
from holdfast.cli.output import write
from holdfast.errors import UsageError

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS), required=False)
def completion(shell: str | None) -> None:
    """Print what makes the shell complete holdfast's commands.

    Commands, options, paths, and of the run on the line its steps and the names of its tensors. Without an argument it
    is for the shell in SHELL.

    \b
    Examples:
      eval "$(holdfast completion bash)"        # in ~/.bashrc
      eval "$(holdfast completion zsh)"         # in ~/.zshrc
      holdfast completion fish | source         # in ~/.config/fish/config.fish
    """
    from click.shell_completion import get_completion_class

    from holdfast.cli.group import holdfast

    name = shell or Path(os.environ.get("SHELL", "")).name
    kind = get_completion_class(name) if name in SHELLS else None
    if kind is None:
        raise UsageError(f"SHELL={name!r} is none of {', '.join(SHELLS)}", hint="name it: holdfast completion bash")
    write(kind(holdfast, {}, "holdfast", COMPLETE).source())
