"""The results as tables on the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.record import FLOORS, Flat, Number, Result
from benchmarks.stats import Estimate

_STYLES = {"reached": "green", "not reached": "red"}
_WARNING = "quick: a small state and 3 pairs. This shows that it runs; it measures nothing."


def show(console: Console, results: list[Result], facts: dict[str, Any], quick: bool) -> None:
    """Numbers, memory, what the floors are. A quick run says that it measured nothing."""
    if quick:
        console.print(_WARNING, style="bold yellow")
    console.print(", ".join(f"{k} {v}" for k, v in facts.items()), style="dim")
    numbers = [r for r in results if isinstance(r, Number)]
    flats = [r for r in results if isinstance(r, Flat)]
    for rows, table in ((numbers, _numbers(numbers, quick)), (flats, _flats(flats, quick))):
        if rows and table.row_count:
            console.print(table)
    for name in sorted({n.floor for n in numbers}):
        console.print(f"{name}: {FLOORS[name]}", style="dim")


def _table(title: str, *columns: str) -> Table:
    """The first column is words, the rest are right-aligned and never broken."""
    table = Table(title=title, title_justify="left")
    table.add_column(columns[0], min_width=16)
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _numbers(numbers: list[Number], quick: bool) -> Table:
    table = _table("medians; ratio with its 95 % bootstrap interval", "what", "floor s", "ours s", "ratio", "goal", "")
    for n in numbers:
        table.add_row(
            f"{n.what} / {n.floor}",
            f"{n.floors.median:.3f}",
            f"{n.ours.median:.3f}",
            _ratio(n.ratio),
            "" if n.goal is None else f"{n.goal:g}",
            _verdict(n, quick),
        )
    return table


def _flats(flats: list[Flat], quick: bool) -> Table:
    table = _table("memory", "growth", "MiB", "allowed MiB", "")
    for f in flats:
        grown, allowed = f.growth_bytes / 2**20, f.allowed_bytes / 2**20
        table.add_row(f.what, f"{grown:.2f}", f"{allowed:g}", _verdict(f, quick))
    return table


def _verdict(result: Result, quick: bool) -> str:
    return "" if quick or result.verdict == "information" else f"[{_STYLES[result.verdict]}]{result.verdict}"


def _ratio(ratio: Estimate) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"
