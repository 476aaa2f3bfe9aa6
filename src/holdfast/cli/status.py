"""`holdfast status`: how the agents of this node stand."""

from __future__ import annotations

import os
import sys
import tempfile
import time
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import click

from holdfast.cli.agents import Seen, read_page, see, see_all
from holdfast.cli.arenas import settings_of_node
from holdfast.cli.arguments import json_option, url_argument
from holdfast.cli.keys import key_within, single_keys
from holdfast.cli.output import Line, Part, console, note, renderable, write, write_json, write_parts
from holdfast.cli.runs import name_of
from holdfast.cli.standing import parts_of
from holdfast.errors import HoldfastError, UsageError

_WATCH_S = 1.0
_ENDS = ("q", "Q", "\x1b", "\x04")


@click.command()
@url_argument(required=False)
@click.option("--watch-s", type=click.FloatRange(min=0.1), metavar="S", help="Look again every S seconds. [default: 1]")
@click.option("--once", is_flag=True, help="Look once, also on a terminal.")
@click.option("--page", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write its page there.")
@click.option("--open", "browse", is_flag=True, help="Show its page in a browser.")
@json_option()
def status(url: str | None, watch_s: float | None, once: bool, page: Path | None, browse: bool, as_json: bool) -> None:
    """Show how the agents of this node stand.

    Whether all is well and what to do if not; tiers, how far behind they are, ranks and their stalls, slots, errors.
    Without a URL every agent of this user on this node is asked. On a terminal the view is live: q ends it.

    With --page the agent's own page is written to a file, again and again with --watch-s. To look at it from elsewhere,
    forward the socket: ssh -N -L 8080:ARENA/agent.sock NODE, then open http://localhost:8080/.

    \b
    Examples:
      holdfast status
      holdfast status /data/run7 --watch-s 5
      holdfast status /data/run7 --page status.html
      holdfast status --json
    """
    if as_json and (page or browse):
        raise UsageError("a page is no JSON document", hint="--json, or --page and --open")
    looking = _looker(url)
    if page or browse:
        _page(looking, page, browse, watch_s)
    elif as_json:
        write_json({"agents": [_document(seen) for seen in looking()]})
    elif sys.stdout.isatty() and not once:
        _live(looking, watch_s or _WATCH_S)
    else:
        write_parts(parts_of(looking()))


def _looker(url: str | None) -> Callable[[], Sequence[Seen]]:
    if url is not None:
        return lambda: [see(url)]
    arena_dir = settings_of_node().arena_dir
    return lambda: see_all(arena_dir)


def _live(looking: Callable[[], Sequence[Seen]], watch_s: float) -> None:
    """Draw again and again until a key or an interrupt ends it; the last view stays on the terminal."""
    from rich.console import Group
    from rich.live import Live

    parts = list(parts_of(looking()))  # what cannot be looked at at all is an error, not a view
    with single_keys(), Live(console=console(), screen=True, auto_refresh=False, redirect_stdout=False) as live:
        try:
            while True:
                at = time.strftime("%H:%M:%S")
                view = [*parts, Line(f"{at}, every {watch_s:g} s; q ends", "dim")]
                live.update(Group(*map(renderable, view)), refresh=True)
                if key_within(watch_s) in _ENDS:
                    break
                parts = _parts(looking)
        except KeyboardInterrupt:
            pass
    write_parts(parts)


def _parts(looking: Callable[[], Sequence[Seen]]) -> list[Part]:
    """A run that ends while it is watched is no reason to stop watching: a restart brings it back."""
    try:
        return list(parts_of(looking()))
    except HoldfastError as e:
        return [Line(f"{e.message}", "bold yellow")]


def _page(looking: Callable[[], Sequence[Seen]], page: Path | None, browse: bool, watch_s: float | None) -> None:
    """Write the page; with `watch_s` until an interrupt."""
    seen = _one(looking())
    path = page or Path(tempfile.gettempdir()) / f"holdfast-{os.getuid()}-{seen.arena.path.name}.html"
    _write_page(path, read_page(seen.arena.path))
    if browse and not webbrowser.open(path.absolute().as_uri()):
        raise UsageError(
            f"no browser opens here; the page is {path}",
            hint=f"look from elsewhere: ssh -N -L 8080:{seen.arena.path}/agent.sock NODE, then http://localhost:8080/",
        )
    if watch_s is None:
        write(f"{path}")
        return
    note(f"writing {path} every {watch_s:g} s; Ctrl-C ends it")
    _keep_writing(path, seen.arena.path, watch_s)


def _keep_writing(path: Path, arena: Path, watch_s: float) -> NoReturn:
    """A run that ends meanwhile ends nothing, as in the live view; that is noted once."""
    silent = False
    while True:
        time.sleep(watch_s)
        try:
            data = read_page(arena)
        except HoldfastError as e:
            if not silent:
                note(f"{e.message}; {path} stays as it is until an agent answers")
            silent = True
        else:
            _write_page(path, data)
            silent = False


def _one(agents: Sequence[Seen]) -> Seen:
    if len(agents) != 1:
        raise UsageError(
            f"{len(agents)} agents are here, a page is of one", hint="name the run: holdfast status URL --page"
        )
    return agents[0]


def _write_page(path: Path, data: bytes) -> None:
    """Whole or not at all: a browser may load it at any moment."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as e:
        temporary.unlink(missing_ok=True)
        raise UsageError(
            f"cannot write {path}: {e.strerror}", hint="name a file in a directory you may write to"
        ) from e


def _document(seen: Seen) -> dict[str, object]:
    return {
        "run": seen.run,
        "home": seen.home or None,
        "arena": os.fspath(seen.arena.path),
        "state": seen.state,
        "size_bytes": seen.arena.size_bytes,
        "only_here": [name_of(c) for c in seen.only_here],
        "error": seen.error.to_dict() if seen.error is not None else None,
        "status": seen.status,
        "history": seen.history,
    }
