"""`holdfast demo`: train, be killed, come back, compare."""

from __future__ import annotations

import importlib.util
import json
import signal
from pathlib import Path
from types import FrameType

import click

from holdfast.errors import UsageError


@click.command("demo")
@click.option("--steps", type=click.IntRange(min=24), default=120, show_default=True, help="How long to train.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("holdfast-demo"),
    show_default=True,
    help="Where the page is written.",
)
@click.option("--keep", is_flag=True, help="Keep the checkpoints, the event logs and what the processes printed.")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON and nothing else.")
def demo(steps: int, out: Path, keep: bool, as_json: bool) -> None:
    """Train a small GPT on two processes, kill it three times, and compare its losses with an undisturbed run's.

    Needs no GPU, no network and no data, and takes about two minutes. Exits with 1 when any loss differs.
    """
    if importlib.util.find_spec("torch") is None:
        raise UsageError("the demo trains a model, and torch is not installed", hint="pip install 'holdfast[torch]'")
    from rich.console import Console

    from holdfast.demo.script import Script
    from holdfast.demo.show import show

    # So that `kill` ends the processes it started, as Ctrl-C does.
    signal.signal(signal.SIGTERM, _interrupt)
    console = Console(quiet=as_json, soft_wrap=True)
    shown = show(Script(steps=steps), out, console=console, keep=keep)
    if as_json:
        click.echo(json.dumps(shown.summary.to_dict() | {"page": str(shown.page)}, indent=2))
    console.print(f"\nThe page: {shown.page}", highlight=False)
    if shown.kept is not None:
        console.print(f"Kept:     {shown.kept}", highlight=False)
    if not shown.summary.good:
        raise SystemExit(1)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
