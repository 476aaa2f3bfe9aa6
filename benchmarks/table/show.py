"""The table on a terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.table.summary import OVER_COPY_GOAL_S, Row, Section, commits, over_copy, sections, text_of, verdicts

QUICK = "quick: small states and few rounds. This shows that it runs; it measures nothing."


def show(console: Console, record: dict[str, Any]) -> None:
    """One table per state and setting, then ours against the best peer of each column."""
    if not record["is_measurement"]:
        console.print(QUICK, style="bold yellow")
    found = sections(record)
    for section in found:
        console.print(_table(section))
    console.print(
        "medians; below a peer's number: ours / its, round by round, with the 95 % bootstrap interval", style="dim"
    )
    console.print(commits(record), style="dim", markup=False, highlight=False)
    if record["is_measurement"]:
        console.print(_verdicts(found))
        extra = over_copy(record)
        if extra is not None:
            words = "reached" if extra.median <= OVER_COPY_GOAL_S else "not reached"
            console.print(f"20,000 parameters, save beyond the copy: {extra.median * 1e3:.1f} ms (goal 60): {words}")


def _table(section: Section) -> Table:
    table = Table(title=section.title, title_justify="left", padding=(0, 1, 0, 0), box=None, header_style="bold")
    table.add_column("way", min_width=18)
    for column in section.columns:
        table.add_column(f"{column.head}\n{column.unit}", justify="right")
    for row in section.rows:
        if row.failed:
            table.add_row(row.label, *["-"] * len(section.columns), style="dim")
            continue
        table.add_row(row.label, *(_cell(row, c.key, c.unit) for c in section.columns))
    for row in section.rows:
        if row.failed:
            table.caption = f"{table.caption or ''}\n{row.label}: {row.failed}".strip()
            table.caption_justify = "left"
    return table


def _cell(row: Row, key: str, unit: str) -> str:
    value = text_of(row.values[key].median, unit)
    if key not in row.ours_to_it:
        return value
    ratio = row.ours_to_it[key]
    return f"{value}\n[dim]{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})[/dim]"


def _verdicts(found: list[Section]) -> Table:
    table = Table(title="ours against the best peer", title_justify="left", box=None, header_style="bold")
    for name in ("state", "column", "best peer", "ours / best", "goal", ""):
        table.add_column(name)
    for v in verdicts(found):
        style = "green" if v.reached else "red"
        ratio = f"{v.ratio.median:.2f} ({v.ratio.low:.2f}-{v.ratio.high:.2f})"
        words = "reached" if v.reached else "not reached"
        table.add_row(v.section, v.column.head, v.peer, ratio, f"{v.column.goal:g}", f"[{style}]{words}[/{style}]")
    return table


def markdown(record: dict[str, Any]) -> Iterator[str]:
    """The same for a document."""
    if not record["is_measurement"]:
        yield from (f"**{QUICK}**", "")
    for section in sections(record):
        yield from (f"**{section.title}**", "")
        yield "| way | " + " | ".join(f"{c.head}, {c.unit}" for c in section.columns) + " | run |"
        yield "|---|" + "---|" * (len(section.columns) + 1)
        for row in section.rows:
            yield f"| {row.label} | {' | '.join(_markdown_cells(section, row))} | {', '.join(map(str, row.runs))} |"
        yield ""
    yield commits(record)


def _markdown_cells(section: Section, row: Row) -> Iterator[str]:
    for number, column in enumerate(section.columns):
        if row.failed:
            yield row.failed.replace("|", "/") if number == 0 else ""
        else:
            yield text_of(row.values[column.key].median, column.unit)
