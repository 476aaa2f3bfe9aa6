"""How every command speaks: tables and progress for a person, plain aligned lines in a pipe, JSON for a program.

On a terminal rich draws; in a pipe nothing is cut, coloured or wrapped, and there is no progress.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click
import msgspec

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a `Grid`. `fold` says that its text may be broken over lines when the terminal is narrow."""

    name: str
    right: bool = False
    fold: bool = False


@dataclass(slots=True)
class Grid:
    """A table: columns, rows of text, and per row a rich style ("" for none)."""

    columns: Sequence[Column]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    styles: list[str] = field(default_factory=list)

    def add(self, *cells: str, style: str = "") -> None:
        self.rows.append(cells)
        self.styles.append(style)


def write_json(value: object) -> None:
    """One JSON document on stdout, indented, keys in the order given."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def write(text: str = "", *, style: str = "") -> None:
    """A line, or several, on stdout; the style shows on a terminal only."""
    if sys.stdout.isatty():
        console().print(text, style=style or None, markup=False, highlight=False, soft_wrap=True)
    else:
        click.echo(text)


def write_grid(grid: Grid) -> None:
    """A table on stdout. A column without a single text is left out."""
    used = [i for i, _ in enumerate(grid.columns) if any(row[i] for row in grid.rows)]
    columns = [grid.columns[i] for i in used]
    rows = [tuple(row[i] for i in used) for row in grid.rows]
    if sys.stdout.isatty():
        _draw(columns, rows, grid.styles)
    else:
        for line in _aligned(columns, rows):
            click.echo(line)


def console(*, stderr: bool = False) -> Console:
    """The terminal."""
    from rich.console import Console

    return Console(stderr=stderr)


def _draw(columns: Sequence[Column], rows: Sequence[tuple[str, ...]], styles: Sequence[str]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(
            column.name,
            justify="right" if column.right else "left",
            no_wrap=not column.fold,
            overflow="fold" if column.fold else "ellipsis",
        )
    for row, style in zip(rows, styles, strict=True):
        table.add_row(*(Text(cell) for cell in row), style=style or None)
    console().print(table)


def _aligned(columns: Sequence[Column], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    lines = [tuple(c.name for c in columns), *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        cells = zip(line, widths, columns, strict=True)
        yield "  ".join(t.rjust(w) if c.right else t.ljust(w) for t, w, c in cells).rstrip()


@contextlib.contextmanager
def progress(what: str, total_bytes: int, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """A bar on stderr while bytes pass; yields `advance(n_bytes)`, callable from any thread."""
    if quiet or not sys.stderr.isatty():
        yield lambda n_bytes: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True)
    with Progress(
        *columns, TransferSpeedColumn(), TimeRemainingColumn(), console=console(stderr=True), transient=True
    ) as bar:
        task = bar.add_task(what, total=total_bytes)
        yield lambda n_bytes: bar.advance(task, n_bytes)
