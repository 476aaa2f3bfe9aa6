"""`holdfast agent`: run, look at or stop the node agent of a run."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import click

from holdfast.cli.arenas import arena_of, look, remove, settings_of
from holdfast.cli.arguments import json_option, url_argument
from holdfast.cli.output import Column, Grid, write, write_grid, write_json
from holdfast.cli.runs import open_run
from holdfast.cli.stopping import stop_agent
from holdfast.errors import AgentError, ConfigError, NotFoundError, UsageError
from holdfast.tiers.posix import path_of_url
from holdfast.units import format_bytes, format_seconds
from holdfast.wire.client import AgentClient
from holdfast.wire.spawn import CONFIG, SOCKET, answers, check_socket_path, move_in

_CALL_S = 60.0
_SAID_OTHERWISE = frozenset({"arena_size"})
"""Keys of the status whose value another one has, too."""


@click.command()
@url_argument(required=False)
@click.option("--arena", type=click.Path(path_type=Path), help="The arena directory, instead of the URL.")
@click.option("--status", is_flag=True, help="Show what the running agent says of itself.")
@click.option("--stop", is_flag=True, help="End the running agent once the newest step is durable. Its memory stays.")
@json_option()
def agent(url: str | None, arena: Path | None, status: bool, stop: bool, as_json: bool) -> None:
    """Run, look at or stop the node agent of a run.

    Without an option it runs in the foreground. Nobody needs to: a Checkpointer starts its agent, and the agent goes by
    itself. It is useful to bring to a durable tier what a killed job left in memory, and to see why an agent does not
    start. The home has to be there: only a Checkpointer makes one.

    After --stop its memory stays for the next launch; `holdfast doctor --clean --yes` frees it.

    \b
    Examples:
      holdfast agent /data/run7
      holdfast agent /data/run7 --status
      holdfast agent file:///data/run7 --stop
      holdfast agent --arena /dev/shm/holdfast-1000/run7-0123456789ab --status --json
    """
    if (url is None) == (arena is None) or (status and stop):
        raise UsageError("name the run by its URL or by --arena, and ask for one thing", hint="see --help")
    if as_json and not (status or stop):
        raise UsageError("an agent in the foreground prints no document", hint="--json goes with --status or --stop")
    place = arena_of(url) if url is not None else (arena or Path()).absolute()
    if status:
        _status(place, as_json)
    elif stop:
        _stop(place, as_json)
    else:
        _run(place, url)


def _run(arena: Path, url: str | None) -> None:
    from holdfast.agent.main import run

    check_socket_path(arena)
    if answers(arena):
        write(f"an agent serves {arena} already")
        return
    fresh = not (arena / CONFIG).exists()
    if fresh:
        if url is None:
            raise AgentError(f"no settings in {arena}", hint="name the run by its URL: `holdfast agent URL`")
        _require_home(url)
        os.close(move_in(arena, settings_of(url)))  # its log: in the foreground it writes to the terminal
    code = run(arena)
    if code != 0:
        if fresh:
            _take_back(arena)
        raise click.exceptions.Exit(code)


def _require_home(url: str) -> None:
    """An agent by hand is for a run that has begun: a home that is not there is more likely a slip of the pen.

    Raises: ConfigError when even its parent is missing; NotFoundError; TierError.
    """
    try:
        with open_run(url):
            return
    except NotFoundError:
        parent = Path(path_of_url(url)).parent
        if not parent.is_dir():
            raise ConfigError(f"{parent} does not exist", hint="check the URL; a run's parent is never made") from None
        raise


def _take_back(arena: Path) -> None:
    """Leave nothing of an agent that did not start; an arena that holds an image stays."""
    found = look(arena)
    if found.left_over and not found.images:
        remove(found)
        with contextlib.suppress(OSError):
            arena.parent.rmdir()


def _status(arena: Path, as_json: bool) -> None:
    if not answers(arena):
        raise AgentError(
            f"no agent runs for this run on this node ({arena})",
            hint="a job starts it; `holdfast agent URL` runs one by hand; HOLDFAST_ARENA_DIR must be the job's",
        )
    status: dict[str, Any] = AgentClient(arena / SOCKET).get("/status", dict, timeout_s=_CALL_S)
    if as_json:
        write_json(status)
        return
    facts = Grid([Column("what"), Column("value", fold=True)])
    for name, value in status.items():
        if not isinstance(value, list) and name not in _SAID_OTHERWISE:
            facts.add(name, _text(value, name))
    write_grid(facts)
    for name, rows in status.items():
        if isinstance(rows, list) and rows:
            write(f"\n{name}", style="bold")
            _rows([r if isinstance(r, dict) else {name: r} for r in rows])


def _rows(rows: list[dict[str, Any]]) -> None:
    heads = list(dict.fromkeys(key for row in rows for key in row))
    grid = Grid(
        [Column(h, right=all(isinstance(r.get(h), (int, float)) for r in rows), fold=h == "message") for h in heads]
    )
    for row in rows:
        grid.add(*(_text(row.get(h), h) for h in heads))
    write_grid(grid)


def _text(value: Any, name: str = "") -> str:
    """A status value for a person: its unit is in its name."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {_text(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return _number(value, name)
    return str(value)


def _number(value: float, name: str) -> str:
    if name.endswith("_bytes_per_s"):
        return f"{format_bytes(value)}/s"
    if name.endswith("_bytes"):
        return format_bytes(value)
    return format_seconds(value) if name.endswith("_s") else f"{value}"


def _stop(arena: Path, as_json: bool) -> None:
    was_running = stop_agent(arena)
    if as_json:
        write_json({"arena": os.fspath(arena), "was_running": was_running})
    elif not was_running:
        write(f"no agent runs in {arena}")
    else:
        write(f"the agent of {arena} has ended")
        if arena.exists():
            write("its memory stays for the next launch; `holdfast doctor --clean --yes` frees it")
