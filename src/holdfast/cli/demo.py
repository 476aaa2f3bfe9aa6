"""`holdfast demo`: train, be killed, come back, compare."""

from __future__ import annotations

import contextlib
import importlib.util
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import click

from holdfast.cli.arguments import json_option
from holdfast.cli.output import write, write_json
from holdfast.demo.script import LEAST_STEPS
from holdfast.errors import UsageError

DIFFERENT = 1


@click.command()
@click.option(
    "--steps", type=click.IntRange(min=LEAST_STEPS), default=100, show_default=True, help="How long to train."
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("holdfast-demo"),
    show_default=True,
    help="The directory for the page.",
)
@click.option("--keep", is_flag=True, help="Keep the checkpoints, the event logs and what the processes printed.")
@json_option()
def demo(steps: int, out: Path, keep: bool, as_json: bool) -> None:
    """Show on this machine what Holdfast does, with a real training job.

    Two processes train a small GPT, once undisturbed and once killed three times: in mid step, in mid flush, and with
    their memory wiped. Every loss is compared with the undisturbed run's, bit by bit, and a page tells the story. Needs
    no GPU, no network and no data, and takes about two minutes. Exits with 1 if a loss differs.

    \b
    Examples:
      holdfast demo
      holdfast demo --steps 300 --keep
      holdfast demo --json --out /tmp/demo
    """
    if importlib.util.find_spec("torch") is None:
        raise UsageError(
            "the demo trains a model and torch is not installed",
            hint="install torch, e.g. `pip install '.[torch]'` in a clone of Holdfast",
        )
    from holdfast.demo.screen import terminal
    from holdfast.demo.script import Script
    from holdfast.demo.show import show

    with _ended_like_an_interrupt():
        shown = show(Script(steps=steps), out, console=terminal(quiet=as_json), keep=keep)
    if as_json:
        write_json(shown.summary.to_dict() | {"page": str(shown.page)})
    else:
        write(f"\nThe page: {shown.page}" + (f"\nKept:     {shown.kept}" if shown.kept else ""))
    if not shown.summary.good:
        raise click.exceptions.Exit(DIFFERENT)


@contextlib.contextmanager
def _ended_like_an_interrupt() -> Iterator[None]:
    """SIGTERM, too, first ends the processes that the demo started."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
