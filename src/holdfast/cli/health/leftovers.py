"""What dead processes left behind: arenas without agent, temporary files nobody writes any more.

A leftover arena may hold the only copy of the newest step, so it is removed only where told so twice.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from holdfast.cli import arenas
from holdfast.cli.health.finding import Finding, ok, warn
from holdfast.model.identity import CheckpointId
from holdfast.tiers.contract import TEMPORARY
from holdfast.units import format_bytes, format_seconds

STALE_S = 3600.0
"""A temporary file that nobody wrote to for so long has no living owner: a flush writes every few milliseconds."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """`kind` is "arena" or "temporary". `only_here`: checkpoints that go for good with it."""

    kind: str
    path: Path
    size_bytes: int
    only_here: tuple[CheckpointId, ...] = ()
    arena: arenas.Arena | None = None

    def remove(self) -> None:
        """Raises: RunBusyError, AgentError, OSError."""
        if self.arena is not None:
            arenas.remove(self.arena)
        else:
            self.path.unlink(missing_ok=True)


def leftover_arenas(found: list[arenas.Arena]) -> Iterator[Leftover]:
    """Arenas without a living agent or trainer."""
    for arena in found:
        if arena.left_over:
            yield Leftover("arena", arena.path, arena.size_bytes, tuple(arena.only_here()), arena)


def stale_files(home: Path) -> Iterator[Leftover]:
    """Unfinished uploads under a file:// tier."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(home / TEMPORARY):
            stat = entry.stat()
            if time.time() - stat.st_mtime > STALE_S:
                yield Leftover("temporary", Path(entry.path), stat.st_blocks * arenas.BLOCK_BYTES)


def leftover_findings(found: list[Leftover]) -> Iterator[Finding]:
    """One finding per arena, one for all temporary files."""
    for item in (x for x in found if x.kind == "arena"):
        yield _arena(item)
    stale = [x for x in found if x.kind == "temporary"]
    if stale:
        yield warn(
            "temporary-files",
            f"{len(stale)} unfinished uploads in {stale[0].path.parent}, untouched for {format_seconds(STALE_S)}, "
            f"{format_bytes(sum(x.size_bytes for x in stale))}",
            "`holdfast doctor URL --clean` removes them",
        )
    if not found:
        yield ok("leftovers", "nothing was left behind")


def _arena(item: Leftover) -> Finding:
    text = f"{item.path} has no agent, {format_bytes(item.size_bytes)}"
    if not item.only_here:
        return warn(
            "leftover-arena", text, "`holdfast doctor --clean` removes it; the next launch of its run would use it"
        )
    steps = ", ".join(map(str, item.only_here))
    return warn(
        "leftover-arena",
        f"{text}; it alone holds {steps}",
        f"`holdfast agent --arena {item.path}` makes that durable, the next launch of its run loads it; "
        "`holdfast doctor --clean --discard-unsaved` throws it away",
    )
