"""What dead processes left behind: arenas without agent, temporary files nobody writes, images of no checkpoint.

A leftover arena may hold the only copy of the newest step, so that one is removed only where told so twice.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from holdfast.cli import arenas
from holdfast.cli.health.finding import Finding, ok, warn
from holdfast.cli.output import counted
from holdfast.cli.runs import Run, claimed_elsewhere
from holdfast.model.identity import CheckpointId
from holdfast.store.sweep import execute_sweep, plan_sweep
from holdfast.tiers.contract import ABANDONED_S, TEMPORARY
from holdfast.tiers.posix.translate import translated
from holdfast.units import format_bytes, format_seconds

ARENA, TEMPORARY_FILES, IMAGES = "arena", "temporary-files", "orphan-images"
_RECYCLABLE = "-old-"
"""In the name of a deleted image's file that waits to be written over, and has the age of the image."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """`kind` is one of the above. `only_here`: checkpoints that go for good with it."""

    kind: str
    where: str
    count: int
    size_bytes: int
    remove: Callable[[], None]
    """Raises: RunBusyError, AgentError, SupersededError, TierError."""
    only_here: tuple[CheckpointId, ...] = ()


def leftover_arenas(found: list[arenas.Arena]) -> Iterator[Leftover]:
    """Arenas without a living agent or trainer."""
    for arena in (a for a in found if a.left_over):
        yield Leftover(
            kind=ARENA,
            where=str(arena.path),
            count=1,
            size_bytes=arena.size_bytes,
            remove=lambda arena=arena: arenas.remove(arena),  # type: ignore[misc]
            only_here=tuple(arena.only_here()),
        )


def stale_files(home: Path, *, served: bool) -> Iterator[Leftover]:
    """Unfinished uploads under a file:// tier. `served`: by a living agent, which may keep old files for new images."""
    paths, size_bytes = [], 0
    with contextlib.suppress(OSError), os.scandir(home / TEMPORARY) as entries:
        for entry in entries:
            if not entry.is_file(follow_symlinks=False) or (served and _RECYCLABLE in entry.name):
                continue
            with contextlib.suppress(FileNotFoundError):  # published meanwhile, or swept
                stat = entry.stat()
                if time.time() - stat.st_mtime > ABANDONED_S:
                    paths.append(Path(entry.path))
                    size_bytes += stat.st_blocks * arenas.BLOCK_BYTES
    if paths:
        yield Leftover(TEMPORARY_FILES, str(home / TEMPORARY), len(paths), size_bytes, lambda: _unlink(home, paths))


def _unlink(home: Path, paths: list[Path]) -> None:
    with translated("home", None, str(home)):
        for path in paths:
            path.unlink(missing_ok=True)


def orphan_images(run: Run) -> Iterator[Leftover]:
    """Images that no manifest names, older than the newest checkpoint; a live owner sweeps its own."""
    if run.agent is not None or claimed_elsewhere(run.owner):
        return
    plan = plan_sweep(run.catalog, in_flight=())
    if plan.images:
        yield Leftover(
            kind=IMAGES,
            where=run.url,
            count=len(plan.images),
            size_bytes=plan.size_bytes,
            remove=lambda: _sweep(run),
        )


def _sweep(run: Run) -> None:
    plan = plan_sweep(run.catalog, in_flight=())
    execute_sweep(run.home, plan, authority=run.authority, owner=run.attempts.highest)


def leftover_findings(found: list[Leftover]) -> Iterator[Finding]:
    """One finding each."""
    for item in found:
        yield _FINDINGS[item.kind](item)
    if not found:
        yield ok("leftovers", "nothing was left behind")


def _arena(item: Leftover) -> Finding:
    text = f"{item.where} has no agent, {format_bytes(item.size_bytes)}"
    if not item.only_here:
        todo = "the next launch of its run uses it; `holdfast doctor --clean --yes` removes it"
        return warn("leftover-arena", text, todo)
    return warn(
        "leftover-arena",
        f"{text}; it alone holds {', '.join(map(str, item.only_here))}",
        f"the next launch of its run loads that, `holdfast agent --arena {item.where}` makes it durable; "
        "`holdfast doctor --clean --discard-unsaved --yes` throws it away",
    )


def _files(item: Leftover) -> Finding:
    return warn(
        "temporary-files",
        f"{counted(item.count, 'unfinished upload')} in {item.where}, {format_bytes(item.size_bytes)}, "
        f"untouched for {format_seconds(ABANDONED_S)}",
        "`holdfast doctor URL --clean --yes` removes them",
    )


def _images(item: Leftover) -> Finding:
    return warn(
        "orphan-images",
        f"{counted(item.count, 'image')} at {item.where} that no checkpoint names, {format_bytes(item.size_bytes)}",
        "the next launch of the run removes them, or `holdfast doctor URL --clean --yes`",
    )


_FINDINGS: dict[str, Callable[[Leftover], Finding]] = {ARENA: _arena, TEMPORARY_FILES: _files, IMAGES: _images}
