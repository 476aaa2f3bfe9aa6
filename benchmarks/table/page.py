"""The table as one HTML page: a small chart per column, and every number with its interval in a table below."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.stats import Estimate
from benchmarks.table.columns import Column
from benchmarks.table.show import QUICK
from benchmarks.table.summary import (
    OVER_COPY_GOAL_S,
    Row,
    Section,
    Verdict,
    commit_of,
    over_copy,
    sections,
    text_of,
    verdicts,
)
from holdfast.report.page import Card, Page, cards, data, figure, listing, paragraph, table
from holdfast.report.svg import Drawing, Scale

_WIDTH, _LEFT, _RIGHT = 1032.0, 372.0, 880.0
_ROW, _TOP = 22.0, 34.0


def write_page(path: Path, record: dict[str, Any]) -> None:
    """Write the page of a record. Nothing comes from elsewhere."""
    path.write_text(render(record), encoding="utf-8")


def render(record: dict[str, Any]) -> str:
    """The page."""
    found = sections(record)
    judged = list(verdicts(found)) if record["is_measurement"] else []
    page = Page("Holdfast and its peers", _headline(record, judged), _lead(record), good=record["is_measurement"])
    if judged:
        page.section("Against the best peer of each column", table(*_verdict_table(judged)))
        page.add(cards(_cards(record)))
    for section in found:
        page.section(section.title, *_section(section))
    page.section("How", paragraph(_HOW), table(_RUN, _runs(record)))
    page.section("Machine", listing("\n".join(_machine(record))))
    page.add(data("record", record))
    return page.render()


_RUN = ("run", "commit (+: with changes)", "command", "began", "load average")
_HOW = (
    "One process per way and rank, alive beside ours; each takes one sample per round, another first in every round."
    " A bar is the median, the thin line its 95 % bootstrap interval. Ours x is ours divided by the peer's, round by"
    " round. Durable includes fsync of every file and directory, for every way alike. The command, the columns and the"
    " settings are in docs/benchmarks.md; every sample is inside this page."
)


def _headline(record: dict[str, Any], judged: list[Verdict]) -> str:
    if not record["is_measurement"]:
        return "A quick run: it shows that everything runs, and measures nothing"
    reached = sum(v.reached for v in judged)
    return f"{reached} of {len(judged)} goals against the best peer reached"


def _lead(record: dict[str, Any]) -> str:
    machine = record["machine"]
    memory = f"{machine['memory_bytes'] / 2**30:.0f} GiB"
    where = f"{machine['cores']} cores, {memory}, {machine['file_system']}, torch {machine['torch']}"
    return f"{QUICK if not record['is_measurement'] else 'Medians on one machine'} ({where})."


def _cards(record: dict[str, Any]) -> Iterator[Card]:
    extra = over_copy(record)
    if extra is not None:
        word = "reached" if extra.median <= OVER_COPY_GOAL_S else "not reached"
        yield Card("20,000 parameters: save beyond the copy", f"{extra.median * 1e3:.1f} ms", f"goal 60 ms, {word}")


def _verdict_table(judged: list[Verdict]) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    rows = [
        (v.section, v.column.head, v.peer, _interval(v.ratio), f"{v.column.goal:g}", "yes" if v.reached else "no")
        for v in judged
    ]
    return ("state", "column", "best peer", "ours / best", "goal", "reached"), rows


def _section(section: Section) -> Iterator[str]:
    alive = [row for row in section.rows if row.values]
    for column in section.columns:
        if alive:
            yield figure(_chart(section, column, alive), f"{column.head}: {column.what}.")
    for row in section.rows:
        if row.failed:
            yield paragraph(f"{row.label} has no numbers here: {row.failed}")
    head = ("way", *(f"{c.head}, {c.unit}" for c in section.columns), "run")
    yield table(head, [_table_row(section, row) for row in alive])


def _table_row(section: Section, row: Row) -> tuple[str, ...]:
    cells = (_value(row.values[c.key], c.unit) for c in section.columns)
    return (row.label, *cells, ", ".join(map(str, row.runs)))


def _value(found: Estimate, unit: str) -> str:
    return f"{text_of(found.median, unit)} ({text_of(found.low, unit)}-{text_of(found.high, unit)})"


def _interval(ratio: Estimate) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"


def _chart(section: Section, column: Column, rows: list[Row]) -> str:
    """A bar per way, from zero, with its interval as a line; shorter is better."""
    height = _TOP + _ROW * len(rows) + 8
    drawing = Drawing(_WIDTH, height, f"{section.title}: {column.head}")
    most = max([1e-9, *(row.values[column.key].high for row in rows)])
    x = Scale(0.0, most, _LEFT, _RIGHT)
    drawing.text((8, 18), f"{column.head}, {column.unit}", class_="strong")
    for index, row in enumerate(rows):
        _bar(drawing, x, _TOP + _ROW * index, row, column)
    return drawing.render()


def _bar(drawing: Drawing, x: Scale, top: float, row: Row, column: Column) -> None:
    found, middle = row.values[column.key], top + 8
    ours = not row.ours_to_it and row.key == "holdfast"
    drawing.text((_LEFT - 10, top + 13), row.label, class_="strong" if ours else "", anchor="end")
    note = f"{row.label}: {_value(found, column.unit)}, {found.samples} samples"
    drawing.rect(_LEFT, top + 2, max(x(found.median) - _LEFT, 1.0), 13, class_="run" if ours else "wait", note=note)
    low, high = x.clamp(found.low), x.clamp(found.high)
    drawing.line((low, middle), (high, middle), class_="interval")
    ratio = row.ours_to_it.get(column.key)
    words = text_of(found.median, column.unit) + (f"  ours x{ratio.median:.2f}" if ratio else "")
    drawing.text((max(high, x(found.median)) + 8, top + 13), words, class_="soft")


def _runs(record: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (str(r["run"]), commit_of(r), r["command"], r["began"], f"{r['load_average_1_min']:.2f}")
        for r in record["runs"]
    ]


def _machine(record: dict[str, Any]) -> Iterator[str]:
    facts = dict(record["machine"])
    packages = facts.pop("packages")
    yield from (f"{name}: {value}" for name, value in facts.items())
    yield from (f"{name} {value}" for name, value in packages.items())
