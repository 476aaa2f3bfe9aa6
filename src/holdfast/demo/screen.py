"""The demo on a terminal: a line for what matters, a bar for the rest; in a pipe only the lines."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from holdfast.demo.events import Event
from holdfast.demo.job import RANKS
from holdfast.demo.script import Script
from holdfast.demo.summary import HEAD, SCENES, Summary
from holdfast.units import format_bytes, format_seconds

_COLOURS = {"memory": "green", "disk": "yellow"}


def terminal(*, quiet: bool = False) -> Console:
    """Where the story is told: nothing is cut or wrapped in a pipe."""
    console = Console(quiet=quiet)
    return console if console.is_terminal else Console(quiet=quiet, width=160)


class Screen:
    """Tells the story while it happens. Given to `Run` as `tell`, it sees every event once."""

    def __init__(self, console: Console, script: Script) -> None:
        self._console = console
        self._script = script
        self._progress = Progress(
            TextColumn("          {task.description}"),
            BarColumn(bar_width=40),
            MofNCompleteColumn(),
            TextColumn("steps  {task.fields[loss]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            refresh_per_second=4,  # the processors are for training
            disable=not console.is_terminal,
        )
        self._zero = 0.0
        self._killed: Event | None = None
        self._reached: dict[int, int] = {}
        self._attached: dict[int, float] = {}
        self._loaded: set[int] = set()
        self._training: set[int] = set()
        self._saves: dict[int, list[Event]] = {}

    def __enter__(self) -> Screen:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._progress.stop()

    def act(self, title: str, words: str) -> None:
        """A new part of the story, with a clock of its own."""
        for task in self._progress.task_ids:
            self._progress.remove_task(task)
        self._progress.add_task("training", total=self._script.steps, loss="")
        self._zero = 0.0
        self._console.print(f"\n[bold]{title}[/bold]  [dim]{escape(words)}[/dim]", highlight=False)

    def tell(self, event: Event) -> None:
        """What `Run` calls."""
        self._zero = self._zero or event["t"]
        teller = getattr(self, f"_on_{event['what']}", None)
        if teller is not None:
            teller(event)

    def say(self, event: Event, words: str) -> None:
        self._console.print(f"  [dim]{event['t'] - self._zero:6.1f} s[/dim]  {words}", highlight=False)

    def _on_launch(self, event: Event) -> None:
        self.say(event, "torchrun starts two processes")

    def _on_ready(self, event: Event) -> None:
        self._loaded.discard(event["rank"])

    def _on_attached(self, event: Event) -> None:
        self._attached[event["rank"]] = event["t"]

    def _on_loaded(self, event: Event) -> None:
        """The load is over when the last rank has it, and began when the last one came."""
        self._loaded.add(event["rank"])
        if len(self._loaded) == RANKS and event["step"] is not None:
            source, size = ", ".join(event["sources"]), format_bytes(event["bytes"])
            took, colour = format_seconds(event["t"] - max(self._attached.values())), _COLOURS.get(source, "default")
            self.say(event, f"loaded  step {event['step']} from [{colour}]{source}[/{colour}], {size} in {took}")

    def _on_begin(self, event: Event) -> None:
        self._training.add(event["rank"])
        if self._killed is not None and len(self._training) == RANKS:
            lost = min(self._reached.values(), default=-1) - event["step"] + 1
            again = f"{lost} finished step{'s' * (lost != 1)} lost, trained again" if lost else "no finished step lost"
            after_s = event["t"] - self._killed["t"]
            self.say(event, f"[bold]training again[/bold] {after_s:.1f} s after the kill; {again}")
            self._killed = None

    def _on_step(self, event: Event) -> None:
        self._reached[event["rank"]] = event["step"]
        loss = f"loss {float.fromhex(event['loss']):.3f}"
        for task in self._progress.task_ids:
            self._progress.update(task, completed=event["step"] + 1, loss=loss)

    def _on_save(self, event: Event) -> None:
        self._saves.setdefault(event["step"], []).append(event)

    def _on_committed(self, event: Event) -> None:
        saves = [e for e in self._saves.get(event["step"], []) if e["t"] < event["t"]]
        if saves:
            last, stall_s = max(e["t"] for e in saves), max(e["stall_s"] for e in saves)
            due = "" if any("disk" in e["due"] for e in saves) else ", promoted though not due"
            waited = f"training waited {format_seconds(stall_s)}"
            after = format_seconds(event["t"] - last)
            self.say(event, f"step {event['step']} on disk {after} after its save; {waited}{due}")

    def _on_kill(self, event: Event) -> None:
        self._killed = event
        self._training.clear()
        self.say(event, f"[bold red]KILL[/bold red]    {SCENES[event['scene']]}, step {event['step']}")

    def _on_exit(self, event: Event) -> None:
        self.say(event, f"the job ended after step {min(self._reached.values(), default=-1)}")


def print_summary(console: Console, summary: Summary) -> None:
    """The verdict and the numbers behind it."""
    verdict = summary.verdict
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in HEAD:
        table.add_column(column)
    for row in summary.rows():
        table.add_row(*row)
    console.print()
    console.print(table)
    colour = "green" if summary.good else "red"
    console.print(f"\n[bold {colour}]{summary.headline()}[/bold {colour}]", highlight=False)
    weights = "equal too" if verdict.weights_equal else "different"
    equal = verdict.compared - len(verdict.different)
    words = f"{equal} of {verdict.compared} losses equal, compared as bits; final weights {weights}."
    console.print(words, highlight=False)
    for surprise in summary.surprises:
        console.print(f"[red]Not as told: {escape(surprise)}.[/red]", highlight=False)
