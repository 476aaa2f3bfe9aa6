"""The tables of docs/reference.md, as data: tests compare them with the code."""

from __future__ import annotations

from pathlib import Path

_PAGE = Path(__file__).parents[2] / "docs" / "reference.md"


def table(heading: str) -> list[dict[str, str]]:
    """The rows of the first table below that heading; code marks are dropped."""
    lines = _PAGE.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.lstrip("#").strip() == heading and line.startswith("#"))
    rows = []
    for line in lines[start + 1 :]:
        if line.startswith("|"):
            rows.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
        elif rows or line.startswith("#"):
            break
    head, _, *body = rows
    return [dict(zip(head, row, strict=True)) for row in body]


def column(heading: str, name: str) -> set[str]:
    """One column; several names in a cell are parted by commas."""
    return {part for row in table(heading) for part in row[name].split(", ")}
