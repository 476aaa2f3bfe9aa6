"""Print a record as Markdown, for docs/benchmarks.md: `python benchmarks/markdown.py RECORD.json`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def lines(record: dict[str, Any]) -> Iterator[str]:
    """What made it, on what machine, numbers, memory."""
    facts = ", ".join(f"{name} {value}" for name, value in record["machine"].items())
    yield from (f"`{record['command']}`: {facts}.", "")
    if not record["is_measurement"]:
        yield from ("**A smoke test, no measurement.**", "")
    numbers = [r for r in record["results"] if "ratio" in r]
    yield "| what | floor | floor s | ours s | ratio (95 %) | goal | verdict |"
    yield "|---|---|---|---|---|---|---|"
    yield from (_number(n) for n in numbers)
    flats = [r for r in record["results"] if "growth_bytes" in r]
    if flats:
        yield from ("", "| what | MiB | allowed | verdict |", "|---|---|---|---|")
        yield from (_flat(f) for f in flats)


def _number(n: dict[str, Any]) -> str:
    ratio = n["ratio"]
    cells = (
        n["what"],
        n["floor"],
        f"{n['floor_s']['median']:.3f}",
        f"{n['ours_s']['median']:.3f}",
        f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})",
        f"{n['goal']:g}" if n["goal"] else "",
        n["verdict"] if n["goal"] else "",
    )
    return f"| {' | '.join(cells)} |"


def _flat(f: dict[str, Any]) -> str:
    grown, allowed = f["growth_bytes"] / 2**20, f["allowed_bytes"] / 2**20
    return f"| {f['what']} | {grown:.2f} | {allowed:g} | {f['verdict']} |"


if __name__ == "__main__":
    print("\n".join(lines(json.loads(Path(sys.argv[1]).read_text()))))
