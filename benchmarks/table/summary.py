"""A record, summed up: per state and setting the rows and columns of the table, and the verdicts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks.stats import Estimate, estimate, ratios
from benchmarks.table.columns import LOADING, SAVING, Column
from benchmarks.table.roster import OURS, WAYS
from benchmarks.table.states import STATES

OVER_COPY_GOAL_S = 0.060
_HASH = 12
"""Digits of a commit that a person needs."""


@dataclass(slots=True)
class Row:
    """One way: its numbers, and ours as a ratio to them, round by round. `runs`: which runs of the command made it."""

    key: str
    label: str
    runs: list[int]
    failed: str = ""
    values: dict[str, Estimate] = field(default_factory=dict)
    ours_to_it: dict[str, Estimate] = field(default_factory=dict)


@dataclass(slots=True)
class Section:
    """One state in one setting; the first row is ours."""

    key: str
    title: str
    columns: tuple[Column, ...]
    rows: list[Row]

    @property
    def peers(self) -> list[Row]:
        return self.rows[1:]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Ours against the best peer of a column."""

    section: str
    column: Column
    peer: str
    ratio: Estimate

    @property
    def reached(self) -> bool:
        return self.ratio.median <= self.column.goal


def sections(record: dict[str, Any]) -> list[Section]:
    """In the order of the states; saving before loading."""
    keys = dict.fromkeys(key.rpartition("/")[0] for key in record["cells"])
    order = {name: i for i, name in enumerate(STATES)}
    return [_section(record, key) for key in sorted(keys, key=lambda k: (order[k.split("/")[0]], "load" in k, k))]


def _section(record: dict[str, Any], key: str) -> Section:
    state, kind, *threads = key.split("/")
    cells = {k.rpartition("/")[2]: c for k, c in record["cells"].items() if k.rpartition("/")[0] == key}
    columns = SAVING if kind == "save" else LOADING
    title = f"{STATES[state].what}: {'saving' if kind == 'save' else 'loading'}"
    if threads and STATES[state].ranks == 1:
        title += ", a core left free" if threads == ["1"] else ", no core left free"
    known = {k: c for k, c in cells.items() if k in WAYS}
    return Section(
        key, title, columns, [_ours(known, columns), *(_peer(k, known[k], columns) for k in WAYS if k in known)]
    )


def _ours(cells: dict[str, Any], columns: tuple[Column, ...]) -> Row:
    """Every round of ours, whoever it was beside. Peers of one batch share ours: each sample counts once."""
    samples = [ours for c in cells.values() for ours, _ in c["rounds_ours_peer"] if ours is not None]
    unique = list({tuple(sorted(s.items())): s for s in samples}.values())
    row = Row(OURS.key, OURS.label, sorted({c["run"] for c in cells.values()}))
    if not unique:
        row.failed = next((c["ours_failed"] for c in cells.values() if c["ours_failed"]), "not measured")
    row.values = {c.key: estimate([s[c.key] for s in unique]) for c in columns if unique}
    return row


def _peer(key: str, cell: dict[str, Any], columns: tuple[Column, ...]) -> Row:
    row = Row(key, WAYS[key].label, [cell["run"]], cell["failed"])
    rounds = [(ours, peer) for ours, peer in cell["rounds_ours_peer"] if peer is not None]
    for column in columns:
        both = [(peer[column.key], ours[column.key]) for ours, peer in rounds if ours is not None]
        if rounds:
            row.values[column.key] = estimate([peer[column.key] for _, peer in rounds])
        if both and all(peer > 0 for peer, _ in both):
            row.ours_to_it[column.key] = ratios(both)
    return row


def verdicts(found: list[Section]) -> Iterator[Verdict]:
    """Per section and column: ours against the peer with the best median."""
    for section in found:
        for column in section.columns:
            rows = [row for row in section.peers if column.key in row.ours_to_it and not row.failed]
            if rows:
                best = min(rows, key=lambda row: row.values[column.key].median)
                yield Verdict(section.title, column, best.label, best.ours_to_it[column.key])


def over_copy(record: dict[str, Any]) -> Estimate | None:
    """What a save of ours takes beyond one copy of the same tensors, in seconds; None where that was not measured."""
    samples = [
        (ours["stall_s"], ours["copy_s"])
        for cell in record["cells"].values()
        for ours, _ in cell["rounds_ours_peer"]
        if ours is not None and "copy_s" in ours
    ]
    return estimate([stall - copy for stall, copy in dict.fromkeys(samples)]) if samples else None


def commits(record: dict[str, Any]) -> str:
    """Which runs of the command measured which commit of Holdfast, in words."""
    runs: dict[str, list[str]] = {}
    for run in record["runs"]:
        runs.setdefault(commit_of(run), []).append(str(run["run"]))
    parts = (f"{name} (run{'s' if len(made) > 1 else ''} {', '.join(made)})" for name, made in runs.items())
    changed = "; +: with changes that no commit has" if any(name.endswith("+") for name in runs) else ""
    return f"commit of Holdfast: {', '.join(parts)}{changed}"


def commit_of(run: dict[str, Any]) -> str:
    """Short; runs of old records have none."""
    found: str = run.get("commit", "not noted")
    return found[:_HASH] + ("+" if found.endswith("+") else "")


def text_of(value: float, unit: str) -> str:
    """Three figures that a person can compare."""
    if unit == "GiB":
        value /= 2**30
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
