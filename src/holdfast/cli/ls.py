"""`holdfast ls`: list the checkpoints of a run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import click

from holdfast.cli.arguments import json_option, url_argument
from holdfast.cli.noted import notes_document, told_metrics
from holdfast.cli.output import Column, Grid, note, paged, write, write_grid, write_json
from holdfast.cli.runs import MEMORY, Run, describe_lineage, name_of, open_run
from holdfast.errors import HoldfastError
from holdfast.model.identity import CheckpointId
from holdfast.model.notes import Notes
from holdfast.store.catalog import CatalogEntry, read_catalog
from holdfast.units import format_bytes


@dataclass(slots=True)
class Listed:
    """One checkpoint, as all places together tell it."""

    id: CheckpointId
    tiers: list[str] = field(default_factory=list)
    """Where it is whole: loadable from each."""
    size_bytes: int = 0
    problems: list[str] = field(default_factory=list)
    unfinished: str = ""
    """Not a checkpoint (yet, or any more): "uncommitted" or "deleting"."""
    abandoned: bool = False
    newest: bool = False
    notes: Notes | None = None


@click.command()
@url_argument()
@click.option("--all", "everything", is_flag=True, help="Also what was never committed, and deletions that have begun.")
@json_option()
def ls(url: str, everything: bool, as_json: bool) -> None:
    """List the checkpoints of a run.

    Oldest first; the newest that loads is marked. WHERE says from where one can be loaded: memory is this node's, and
    only a live agent can tell what is in it. Abandoned are those the run went back before (dimmed on a terminal).

    \b
    Examples:
      holdfast ls /data/run7
      holdfast ls file:///data/run7 --all
      holdfast ls /data/run7 --json
    """
    with open_run(url) as run:
        listed = collect(run)
        shown = [x for x in listed if everything or not x.unfinished]
        if as_json:
            write_json(_document(run, shown))
        else:
            with paged():
                _print(run, shown, hidden=len(listed) - len(shown))


def collect(run: Run) -> list[Listed]:
    """Everything the run's tiers and the agent's memory have, oldest first."""
    found: dict[CheckpointId, Listed] = {}
    for opened in run.tiers:
        try:
            catalog = run.catalog if opened.tier is run.home else read_catalog(opened.tier)
        except HoldfastError as e:
            run.problems.append(f"{opened.name}: {e.message}")
            continue
        named = catalog.named()
        for entry in catalog:
            if not (entry.committed or entry.tombstoned) and named.issuperset(entry.images):
                continue  # the step is gone; what stands there others share
            _add_entry(found.setdefault(entry.id, Listed(entry.id)), entry, opened.name)
    for info in run.in_memory:
        one = found.setdefault(CheckpointId(info.attempt, info.step), Listed(CheckpointId(info.attempt, info.step)))
        one.size_bytes = one.size_bytes or info.size_bytes
        one.tiers.insert(0, MEMORY)
        one.unfinished = ""
    run.problems += [str(p) for p in run.attempts.problems]
    return _judged(run, [found[c] for c in sorted(found)])


def _add_entry(one: Listed, entry: CatalogEntry, tier: str) -> None:
    one.size_bytes = max(one.size_bytes, entry.size_bytes)
    one.notes = one.notes or (entry.manifest.notes if entry.manifest is not None else None)
    if entry.loadable:
        one.tiers.append(tier)
        one.unfinished = ""
    elif entry.committed:
        one.problems += [f"{tier}: {text}" for text in _problems(entry)]
        one.unfinished = ""
    elif not one.tiers and not one.problems:
        one.unfinished = "deleting" if entry.tombstoned else "uncommitted"


def _problems(entry: CatalogEntry) -> Iterator[str]:
    if entry.problem is not None:
        yield f"manifest: {entry.problem.message}"
    if entry.missing:
        yield f"{len(entry.missing)} of its images missing or cut short, first {entry.missing[0]}"
    if entry.bad:
        yield f"{len(entry.bad)} of its images known to be bad, first {entry.bad[0]}"


def _judged(run: Run, listed: list[Listed]) -> list[Listed]:
    lineage = run.lineage
    for one in listed:
        one.abandoned = one.id not in lineage
    newest = next((x for x in reversed(listed) if x.tiers and not x.abandoned), None)
    if newest is not None:
        newest.newest = True
    return listed


def _print(run: Run, shown: list[Listed], hidden: int) -> None:
    columns = Column("STEP", right=True), Column("ATTEMPT", right=True), Column("WHERE"), Column("SIZE", right=True)
    measured = [Column("METRICS", fold=True)] if any(x.notes and x.notes.metrics for x in shown) else []
    grid = Grid([*columns, *measured, Column("NOTE"), Column("PROBLEM", fold=True)])
    for one in shown:
        where, style = ", ".join(one.tiers), "red" if one.problems else "dim" if one.abandoned else ""
        text = one.unfinished or ("abandoned" if one.abandoned else "newest" if one.newest else "")
        size = format_bytes(one.size_bytes) if one.size_bytes else ""
        metrics = [told_metrics(one.notes)] if measured else []
        cells = str(one.id.step), str(one.id.attempt), where, size, *metrics, text, "\n".join(one.problems)
        grid.add(*cells, style=style)
    if shown:
        write_grid(grid)
    if sys.stdout.isatty() or not shown:
        write(_summary(run, shown, hidden), style="dim")
    for problem in run.problems:
        note(problem)


def _summary(run: Run, shown: list[Listed], hidden: int) -> str:
    parts = [describe_lineage(run.attempts)] if run.attempts.highest else []
    if not shown:
        parts.insert(0, f"no checkpoints at {run.url}")
    if hidden:
        parts.append(f"{hidden} uncommitted or being deleted: --all shows them")
    return "; ".join(parts)


def _document(run: Run, shown: list[Listed]) -> dict[str, object]:
    owner = run.owner
    return {
        "url": run.url,
        "run": owner.run if owner is not None else None,
        "attempt": run.attempts.highest or None,
        "parent": name_of(owner.parent) if owner is not None else None,
        "agent": run.agent is not None,
        "steps": [
            {
                "step": x.id.step,
                "attempt": x.id.attempt,
                "tiers": x.tiers,
                "size_bytes": x.size_bytes,
                "state": x.unfinished or ("loadable" if x.tiers else "damaged"),
                "abandoned": x.abandoned,
                "newest": x.newest,
                **notes_document(x.notes),
                "problems": x.problems,
            }
            for x in shown
        ],
        "problems": run.problems,
    }
