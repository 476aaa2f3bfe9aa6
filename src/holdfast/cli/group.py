"""The table of commands. A command's module is imported when it is called, so that `--help` and `ls` start quickly."""

from __future__ import annotations

import importlib

import click
from click.shell_completion import CompletionItem

from holdfast import __version__

COMMANDS = {
    "demo": "Show on this machine what Holdfast does, with a real training job.",
    "status": "Show how the agents of this node stand.",
    "ls": "List the checkpoints of a run.",
    "show": "Show what a checkpoint contains.",
    "diff": "Compare two checkpoints of a run, or of two.",
    "verify": "Read checkpoints and compare every byte with its checksum.",
    "prune": "Delete checkpoints by plan.",
    "import": "Bring in a checkpoint of torch DCP, torch.save or safetensors.",
    "export": "Write a checkpoint as torch DCP, torch.save or safetensors have it.",
    "doctor": "Look at this machine, and at a run, for what would make saving fail or slow.",
    "bench": "Measure a tier from this node: bandwidth and latency.",
    "agent": "Run, look at or stop the node agent of a run.",
    "completion": "Print what makes the shell complete holdfast's commands.",
}
"""Command name (module and attribute, too) -> the one line that `holdfast --help` shows without importing it."""
MODULES = {"import": "importing", "export": "exporting"}
"""Of commands whose names Python does not take for a module's, or that belong to such a pair."""

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class LazyGroup(click.Group):
    """A group that imports a command only to run it or to show its own help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the table: what one meets first, first."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        name = MODULES.get(cmd_name, cmd_name)
        command: click.Command = getattr(importlib.import_module(f"holdfast.cli.{name}"), name)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """From the table: a TAB imports no command."""
        found = [CompletionItem(name, help=words) for name, words in COMMANDS.items() if name.startswith(incomplete)]
        return found if not incomplete.startswith("-") else super().shell_complete(ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings=_CONTEXT)
@click.version_option(__version__, prog_name="holdfast")
def holdfast() -> None:
    """Checkpoints of PyTorch training runs: what is there, whether it is whole, and what to keep.

    A checkpoint is named URL --step N: the home of the run (file:///data/run7, or a plain path) and the step on its
    lineage. Commands that report take --json; commands that destroy are a dry run until --yes.
    """
