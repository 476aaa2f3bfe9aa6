"""How every command speaks: tables and progress for a person, plain aligned lines in a pipe, JSON for a program.

On a terminal rich draws; in a pipe nothing is cut, coloured or wrapped, and there is no progress.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING

import click
import msgspec

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress, TaskID
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a `Grid`. `fold` says that its text may be broken over lines when the terminal is narrow."""

    name: str
    right: bool = False
    fold: bool = False


@dataclass(slots=True)
class Grid:
    """A table: columns, rows of text, and per row a rich style ("" for none). A cell may have several lines."""

    columns: Sequence[Column]
    header: bool = True
    rows: list[tuple[str, ...]] = field(default_factory=list)
    styles: list[str] = field(default_factory=list)

    def add(self, *cells: str, style: str = "") -> None:
        self.rows.append(cells)
        self.styles.append(style)

    def used(self) -> list[int]:
        """Columns with some text in them."""
        return [i for i, _ in enumerate(self.columns) if any(row[i] for row in self.rows)]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text, or several, with a rich style."""

    text: str = ""
    style: str = ""


Part = Grid | Line
"""Of what is shown together."""


def write_json(value: object) -> None:
    """One JSON document on stdout, indented, keys in the order given."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def write(text: str = "", *, style: str = "") -> None:
    """A line, or several, on stdout; the style shows on a terminal only."""
    if sys.stdout.isatty():
        console().print(text, style=style or None, markup=False, highlight=False)
    else:
        click.echo(text)


def counted(n: int, what: str) -> str:
    """`"1 image"`, `"2 images"`."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def note(text: str) -> None:
    """A line on stderr: what a person should know, and what a program reading stdout must not meet."""
    if sys.stderr.isatty():
        console(stderr=True).print(f"holdfast: {text}", markup=False, highlight=False)
    else:
        click.echo(f"holdfast: {text}", err=True)


def write_grid(grid: Grid) -> None:
    """A table on stdout. A column without a single text is left out."""
    used = grid.used()
    columns = [grid.columns[i] for i in used]
    rows = [tuple(row[i] for i in used) for row in grid.rows]
    if sys.stdout.isatty():
        console().print(_table(columns, rows, grid))
    else:
        for line in _aligned(columns, [*([tuple(c.name for c in columns)] if grid.header else []), *rows]):
            click.echo(line)


_page: list[Console] = []
"""Where stdout goes while a `paged` text is made."""


def console(*, stderr: bool = False) -> Console:
    """The terminal."""
    from rich.console import Console

    return _page[-1] if _page and not stderr else Console(stderr=stderr)


@contextlib.contextmanager
def paged() -> Iterator[None]:
    """What is written within goes through the user's pager (PAGER, else less) if it is longer than the terminal.

    In a pipe nothing changes. What was written before an error is shown, too.
    """
    if not sys.stdout.isatty():
        yield
        return
    page = console()
    text = ""
    _page.append(page)
    try:
        with page.capture() as captured:
            yield
    finally:
        _page.pop()
        text = captured.get()
        if text.count("\n") < page.height:
            click.echo(text, nl=False, color=True)
        else:
            os.environ.setdefault("LESS", "FRX")  # as git does: colours, and the text stays on the screen
            click.echo_via_pager(text, color=True)


def renderable(part: Part) -> RenderableType:
    """What rich draws for it."""
    from rich.text import Text

    if isinstance(part, Line):
        return Text(part.text, style=part.style)
    used = part.used()
    return _table([part.columns[i] for i in used], [tuple(row[i] for i in used) for row in part.rows], part)


def write_parts(parts: Iterable[Part]) -> None:
    """Lines and tables on stdout, in their order."""
    for part in parts:
        if isinstance(part, Grid):
            write_grid(part)
        else:
            write(part.text, style=part.style)


def _table(columns: Sequence[Column], rows: Sequence[tuple[str, ...]], grid: Grid) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_header=grid.header)
    for column in columns:
        table.add_column(
            column.name,
            justify="right" if column.right else "left",
            no_wrap=not column.fold,
            overflow="fold" if column.fold else "ellipsis",
        )
    for row, style in zip(rows, grid.styles, strict=True):
        table.add_row(*(Text(cell) for cell in row), style=style or None)
    return table


def _aligned(columns: Sequence[Column], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    lines = [line for row in rows for line in zip_longest(*(cell.split("\n") for cell in row), fillvalue="")]
    widths = [max((len(line[i]) for line in lines), default=0) for i in range(len(columns))]
    for line in lines:
        cells = zip(line, widths, columns, strict=True)
        yield "  ".join(t.rjust(w) if c.right else t.ljust(w) for t, w, c in cells).rstrip()


class Bar:
    """Long work under way. Threads: `advance` from any."""

    def advance(self, n_bytes: int) -> None:
        """So many bytes more are done."""

    def say(self, text: str, *, style: str = "") -> None:
        """A line of output that stays, above the bar."""
        write(text, style=style)


class _DrawnBar(Bar):
    def __init__(self, drawn: Progress, task: TaskID) -> None:
        self._drawn, self._task = drawn, task

    def advance(self, n_bytes: int) -> None:
        self._drawn.advance(self._task, n_bytes)

    def say(self, text: str, *, style: str = "") -> None:
        if sys.stdout.isatty():  # one screen: only who draws the bar knows where the line goes
            self._drawn.console.print(text, style=style or None, markup=False, highlight=False)
        else:
            write(text)


@contextlib.contextmanager
def progress(what: str, total_bytes: int, *, quiet: bool = False) -> Iterator[Bar]:
    """A bar on stderr while bytes pass; in a pipe, or when `quiet`, nothing."""
    if quiet or not sys.stderr.isatty():
        yield Bar()
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True)
    drawn = Progress(
        *columns, TransferSpeedColumn(), TimeRemainingColumn(), console=console(stderr=True), transient=True
    )
    with drawn:
        yield _DrawnBar(drawn, drawn.add_task(what, total=total_bytes))
