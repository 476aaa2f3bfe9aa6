"""`holdfast doctor`: look at this machine, and at a run, for what would make saving fail or slow."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import click

from holdfast.cli.arenas import Arena, arena_of, arenas, settings_of, settings_of_node
from holdfast.cli.arguments import json_option, url_argument, yes_option
from holdfast.cli.health.agent import agent_findings
from holdfast.cli.health.chosen import chosen_in_vain
from holdfast.cli.health.filesystem import arena_abilities, home_abilities
from holdfast.cli.health.finding import Finding, Level, bad
from holdfast.cli.health.leftovers import Leftover, leftover_arenas, leftover_findings, orphan_images, stale_files
from holdfast.cli.health.run import run_findings
from holdfast.cli.health.space import arena_room
from holdfast.cli.health.surroundings import read_surroundings, what_ends_with_us
from holdfast.cli.health.versions import versions
from holdfast.cli.output import Column, Grid, write, write_grid, write_json
from holdfast.cli.runs import Run, name_of, open_run
from holdfast.config import Settings
from holdfast.errors import HoldfastError, NotFoundError, UsageError
from holdfast.model.place import Scope
from holdfast.tiers.posix import path_of_url
from holdfast.units import format_bytes, parse_bytes

_STYLES = {Level.OK: "", Level.WARN: "yellow", Level.BAD: "bold red"}


@click.command()
@url_argument(required=False)
@click.option("--state", metavar="SIZE", help='What all ranks of this node save together, as "12 GiB": does it fit?')
@click.option(
    "--settings", "only_settings", is_flag=True, help="Print every setting, its value and its source instead."
)
@click.option("--clean", is_flag=True, help="Remove what dead processes left behind.")
@click.option("--discard-unsaved", is_flag=True, help="Remove even an arena that holds a step no other place has.")
@yes_option("Remove it now.")
@json_option()
def doctor(  # noqa: PLR0913  one parameter per option
    *,
    url: str | None,
    state: str | None,
    only_settings: bool,
    clean: bool,
    discard_unsaved: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Look at this machine, and at a run, for what would make saving fail or slow.

    Looks at the arena's room and limits, at what the file systems can do (a few files are written and removed), at the
    agent, at what ends together with this process, and at what dead processes left. Exits with 1 if something is bad.

    \b
    Examples:
      holdfast doctor
      holdfast doctor /data/run7
      holdfast doctor file:///data/run7 --state "12 GiB"
      holdfast doctor holdfast.toml --settings
      holdfast doctor /data/run7 --clean
      holdfast doctor /data/run7 --clean --yes
    """
    if (yes or discard_unsaved) and not clean:
        raise UsageError("--yes and --discard-unsaved belong to --clean", hint="say --clean, too")
    settings = settings_of(url) if url is not None else settings_of_node()
    if only_settings:
        _print_settings(settings, of_run=url is not None, as_json=as_json)
        return
    found = arenas(settings.arena_dir)
    state_bytes = None if state is None else parse_bytes(state)
    with contextlib.ExitStack() as stack:
        run, unreadable = _opened(url, stack)
        leftovers = [
            *leftover_arenas(found),
            *(stale_files(_path(url), served=bool(run and run.agent)) if url and _is_file(url) else ()),
            *(orphan_images(run) if run else ()),
        ]
        removed = _clean(leftovers, discard_unsaved=discard_unsaved, yes=yes) if clean else []
        gone = removed if yes else []
        findings = [
            *_look(settings, url, state_bytes, [a for a in found if a.path.exists()]),
            *(agent_findings(run.arena if run else arena_of(url)) if url else ()),
            *unreadable,
            *(run_findings(run) if run else ()),
            *leftover_findings([x for x in leftovers if x not in gone]),
        ]
    if as_json:
        write_json(_document(url, findings, leftovers, removed, yes=yes))
    else:
        _print(findings)
        if clean:
            _print_cleaning(leftovers, removed, yes=yes)
    if any(f.level is Level.BAD for f in findings):
        raise click.exceptions.Exit(1)


def _print_settings(settings: Settings, *, of_run: bool, as_json: bool) -> None:
    """Without a URL only what no URL changes."""
    rows = [row for row in settings.table() if of_run or not row[0].startswith(("run", "tiers."))]
    if as_json:
        write_json({"settings": [{"name": n, "value": v, "source": source} for n, v, source in rows]})
        return
    grid = Grid([Column("SETTING"), Column("VALUE"), Column("SOURCE", fold=True)])
    for name, value, source in rows:
        grid.add(name, "" if value is None else str(value), source, style="dim" if source == "default" else "")
    write_grid(grid)


def _opened(url: str | None, stack: contextlib.ExitStack) -> tuple[Run | None, list[Finding]]:
    """The run at the URL where there is one that can be read, else what stands in the way. A new run is no finding."""
    try:
        run = stack.enter_context(open_run(url)) if url is not None else None
        if run is not None:
            _ = run.attempts, run.catalog  # read now: what cannot be listed cannot be looked at below
    except NotFoundError:
        return None, []
    except HoldfastError as e:
        return None, [bad("home", e.message, e.hint or "mend that first: nothing can be saved or loaded there")]
    return run, []


def _look(settings: Settings, url: str | None, state_bytes: int | None, found: list[Arena]) -> Iterator[Finding]:
    yield from versions()
    yield from chosen_in_vain(settings, os.environ, cores=os.cpu_count() or 1)
    arena = arena_of(url) if url is not None else settings.arena
    yield from arena_room(settings, state_bytes, sum(a.size_bytes for a in found if a.path == arena))
    yield from arena_abilities(arena)
    yield from what_ends_with_us(read_surroundings(Path(settings.arena_dir)))
    if url is not None and _is_file(url):
        scope = next((t.scope for t in settings.tiers if t.url == url), Scope.SHARED)
        yield from home_abilities(_path(url), scope)


def _is_file(url: str) -> bool:
    return urlsplit(url).scheme == "file"


def _path(url: str) -> Path:
    return Path(path_of_url(url))


def _clean(leftovers: list[Leftover], *, discard_unsaved: bool, yes: bool) -> list[Leftover]:
    """What goes, or would go without `yes`."""
    chosen = [x for x in leftovers if discard_unsaved or not x.only_here]
    if yes:
        for item in chosen:
            item.remove()
    return chosen


def _print(findings: list[Finding]) -> None:
    grid = Grid([Column(""), Column(""), Column("", fold=True)], header=False)
    for finding in findings:
        text = f"{finding.message}\n-> {finding.todo}" if finding.todo else finding.message
        grid.add(str(finding.level), finding.check, text, style=_STYLES[finding.level])
    write_grid(grid)


def _print_cleaning(leftovers: list[Leftover], removed: list[Leftover], *, yes: bool) -> None:
    write()
    for item in leftovers:
        what = f"{item.kind}: {item.where} ({format_bytes(item.size_bytes)})"
        if item in removed:
            write(f"{'removed' if yes else 'would remove'} {what}")
        else:
            write(f"kept {what}, for {', '.join(map(str, item.only_here))}; --discard-unsaved removes it, too")
    if not leftovers:
        write("nothing to remove")
    elif removed and not yes:
        write("this was a dry run: nothing was removed; add --yes to do it")


def _document(
    url: str | None, findings: list[Finding], leftovers: list[Leftover], removed: list[Leftover], *, yes: bool
) -> dict[str, object]:
    return {
        "url": url,
        "dry_run": not yes,
        "worst": str(max(f.level for f in findings)),
        "findings": [{"check": f.check, "level": str(f.level), "message": f.message, "todo": f.todo} for f in findings],
        "leftovers": [
            {
                "kind": x.kind,
                "where": x.where,
                "count": x.count,
                "size_bytes": x.size_bytes,
                "only_here": [name_of(c) for c in x.only_here],
                "chosen": x in removed,
            }
            for x in leftovers
        ],
    }
