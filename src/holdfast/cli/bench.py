"""`holdfast bench`: measure a tier from this node."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import click
import msgspec
import psutil

from holdfast.cli.arenas import live_agent
from holdfast.cli.arguments import json_option, url_argument
from holdfast.cli.output import Column, Grid, console, note, write, write_grid, write_json
from holdfast.errors import ConfigError, HoldfastError, TierFullError
from holdfast.store.figures import FORMAT, Facts, Figures, keep_figures, state_dir
from holdfast.store.measure import Limits, Measure, Room, Say, new_room, sweep_dead
from holdfast.tiers import open_tier
from holdfast.tiers.contract import Tier
from holdfast.tiers.posix import path_of_url
from holdfast.tiers.posix.mounts import existing, mount_of
from holdfast.units import format_bytes, format_seconds, parse_bytes, parse_seconds

_MOST_S = 3600.0
_ENDED_BY_SIGNAL = 143
_SPARE = 2
"""Free bytes have to be so many times what is written: the run at this place goes on meanwhile."""


@click.command()
@url_argument()
@click.option("--seconds", default="20 s", metavar="TIME", show_default=True, help="How long it may take, about.")
@click.option("--space", default="1 GiB", metavar="SIZE", show_default=True, help="Most bytes there at once.")
@json_option()
def bench(url: str, seconds: str, space: str, as_json: bool) -> None:
    """Measure a tier from this node: bandwidth and latency.

    Bandwidth by size and calls at once, latency of small calls. Writes and reads objects of its own under bench/, which
    no run lists, and removes them, also after Ctrl-C; what a killed one left, the next one removes. A run at the same
    place goes on, and shares the bandwidth. The figures are kept for the planner in the user's state directory.

    \b
    Examples:
      holdfast bench /data/run7
      holdfast bench file:///mnt/nvme/scratch --seconds 60 --space "4 GiB"
      holdfast bench /data/run7 --json
    """
    limits = Limits(_seconds(seconds), parse_bytes(space))
    signal.signal(signal.SIGTERM, _end)
    with _opened(url, limits) as (tier, room):
        swept = sweep_dead(tier)
        if swept:
            note(f"removed {swept} objects that a killed measurement had left")
        figures = _measured(url, tier, room, limits, quiet=as_json)
    kept = _keep(figures)
    if as_json:
        write_json(msgspec.to_builtins(figures) | {"kept_in": str(kept) if kept else None})
    else:
        _print(figures, kept)


def _end(number: int, frame: object) -> None:
    """SIGTERM ends it as an error does: what it wrote is removed."""
    sys.exit(_ENDED_BY_SIGNAL)


def _seconds(text: str) -> float:
    found = parse_seconds(text)
    if not 1.0 <= found <= _MOST_S:
        raise ConfigError(f"{text!r} is not between 1 s and 1 h", hint='write for example --seconds "30 s"')
    return found


@contextlib.contextmanager
def _opened(url: str, limits: Limits) -> Iterator[tuple[Tier, Room]]:
    """The tier, opened for one measurement. A directory that this made goes again.

    Never as a tier of the node's own: that would take files which the run keeps for its next images.
    """
    room = new_room(os.getpid(), 2 * limits.seconds)
    root = Path(path_of_url(url)) if url.startswith("file:") else None
    made = root is not None and not root.exists()
    if root is not None:
        _check_room(existing(root), limits.space_bytes)
    tier = open_tier(url, name="bench", owner=room.owner)
    try:
        yield tier, room
    finally:
        tier.close()
        _sweep_own(url, room)
        if root is not None and made:
            for directory in (root / ".tmp", root):
                with contextlib.suppress(OSError):
                    directory.rmdir()


def _sweep_own(url: str, room: Room) -> None:
    """Remove an upload that a signal ended before the tier knew it, as a successor does."""
    with contextlib.suppress(HoldfastError):  # else the next measurement does
        successor = open_tier(url, name="bench", owner=f"{room.owner}.end", create=False)
        try:
            successor.sweep(owner_prefix=f"{room.owner}-")
        finally:
            successor.close()


def _check_room(where: Path, space_bytes: int) -> None:
    stat = os.statvfs(where)
    free_bytes = stat.f_bavail * stat.f_frsize
    if free_bytes < _SPARE * space_bytes:
        raise TierFullError(
            f"{format_bytes(free_bytes)} are free at {where}, and {format_bytes(_SPARE * space_bytes)} have to be",
            hint=f'give less, for example --space "{format_bytes(max(1 << 20, free_bytes // (2 * _SPARE)))}"',
        )


def _measured(url: str, tier: Tier, room: Room, limits: Limits, *, quiet: bool) -> Figures:
    notes = _live_run(url)
    began = time.monotonic()
    with _bar(quiet=quiet) as say:
        measure = Measure(tier, room, limits, say)
        try:
            measure.run()
        finally:
            measure.clean()
    return Figures(
        format=FORMAT,
        url=url,
        measured_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        took_s=round(time.monotonic() - began, 3),
        space_bytes=limits.space_bytes,
        facts=_facts(url, tier),
        bandwidth=tuple(measure.bandwidth),
        latency=tuple(measure.latency),
        notes=(*notes, *measure.notes),
    )


def _live_run(url: str) -> tuple[str, ...]:
    """Whether a run is at work there, on this node as far as can be seen."""
    if not url.startswith("file:"):
        return ()
    try:
        agent = live_agent(url)
    except HoldfastError as e:
        return (f"whether a run is at work there could not be seen: {e.message}",)
    if agent is None:
        return ()
    text = "a run is at work at this place: it and the measurement share the bandwidth"
    note(text)
    return (text,)


def _facts(url: str, tier: Tier) -> Facts:
    able = tier.capabilities
    return Facts(
        scope=able.scope.value,
        survives=able.survives.name.lower(),
        part_bytes=able.part_bytes,
        concurrency=able.concurrency,
        atomic_create=able.atomic_create,
        host=platform.node(),
        cores=os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        kernel=platform.release(),
        architecture=platform.machine(),
        file_system=mount_of(Path(path_of_url(url))).type if url.startswith("file:") else "",
    )


@contextlib.contextmanager
def _bar(*, quiet: bool) -> Iterator[Say]:
    """A bar over the time on stderr; in a pipe, or when `quiet`, nothing."""
    if quiet or not sys.stderr.isatty():
        yield lambda share, what: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
    with Progress(*columns, console=console(stderr=True), transient=True) as drawn:
        task = drawn.add_task("", total=1.0)
        yield lambda share, what: drawn.update(task, completed=share, description=what)


def _keep(figures: Figures) -> Path | None:
    """Figures that cannot be kept are shown all the same."""
    try:
        return keep_figures(state_dir(), figures)
    except OSError as e:
        note(f"the figures could not be kept: {e}; set XDG_STATE_HOME to a directory of yours")
        return None


def _print(figures: Figures, kept: Path | None) -> None:
    grid = Grid([Column("OBJECT", right=True), Column("CALLS", right=True), Column("WRITE", right=True),
                 Column("READ", right=True), Column("PUBLISH", right=True), Column("SAMPLES", right=True)])  # fmt: skip
    read = {(b.size_bytes, b.calls_at_once): b for b in figures.bandwidth if b.direction == "read"}
    for b in figures.bandwidth:
        if b.direction == "write":
            publish = format_seconds(b.publish_s) if b.publish_s is not None else ""
            back = _speed(read[b.size_bytes, b.calls_at_once].bytes_per_s)
            size, calls = format_bytes(b.size_bytes), str(b.calls_at_once)
            grid.add(size, calls, _speed(b.bytes_per_s), back, publish, str(b.samples))
    write_grid(grid)
    write()
    small = Grid(
        [Column("SMALL CALL"), Column("MEDIAN", right=True), Column("P95", right=True), Column("SAMPLES", right=True)]
    )
    for one in figures.latency:
        what = f"{one.operation} ({one.keys} keys)" if one.keys else one.operation
        small.add(what, format_seconds(one.median_s), format_seconds(one.p95_s), str(one.samples))
    write_grid(small)
    for text in figures.notes:
        note(text)
    if kept is not None:
        note(f"kept for the planner in {kept}")


def _speed(bytes_per_s: float) -> str:
    return f"{format_bytes(bytes_per_s)}/s"
