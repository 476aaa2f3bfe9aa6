"""The columns of the table, and how a sample becomes its numbers."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

AFTER_STEPS = 5
"""Steps that follow once the save is durable: removing the one before may still be felt."""


@dataclass(frozen=True, slots=True)
class Column:
    """`goal`: what ours may be of the best peer's."""

    key: str
    head: str
    what: str
    unit: str
    goal: float = 1.0


SAVING = (
    Column("stall_s", "stall", "training waits in the call that saves", "s"),
    Column("durable_s", "durable", "from that call until file and directory are fsynced, training going on", "s"),
    Column("step_mean", "mean step", "mean step while it is flushed, of the median quiet step", "x"),
    Column("step_worst_s", "worst step", "the longest step while it is flushed", "s", 0.5),
    Column("lost_s", "lost", "stall, and what steps took longer than the median quiet step until durable", "s", 0.5),
    Column("memory_bytes", "memory", "most memory beside the state", "GiB"),
    Column("disk_bytes", "written", "what stands on the disk", "GiB"),
)
LOADING = (
    Column("first_s", "first stall", "stall of the first save of a process, right after its load", "s"),
    Column("death_s", "load after death", "fresh process after kill -9; page cache as the saver left it", "s", 0.2),
    Column("warm_s", "load warm", "all files in the page cache; nothing in memory", "s"),
    Column("cold_s", "load cold", "nothing in memory or in the page cache", "s"),
)
COLUMNS = {column.key: column for column in (*SAVING, *LOADING)}


def figures(answers: list[dict[str, Any]], memory_bytes: int) -> dict[str, float]:
    """The numbers of one save. Ranks step together, so rank 0's steps show the waiting of all."""
    first = answers[0]
    quiet_s = statistics.median(first["quiet_s"])
    steps_s = first["steps_s"]
    flushing = steps_s[: -AFTER_STEPS or None] or steps_s
    return {
        "stall_s": max(a["stall_s"] for a in answers),
        "durable_s": max(a["durable_s"] for a in answers),
        "step_mean": statistics.fmean(flushing) / quiet_s,
        "step_worst_s": max(steps_s),
        "lost_s": first["stall_s"] + sum(s - quiet_s for s in steps_s),
        "memory_bytes": memory_bytes,
        "disk_bytes": first["bytes"],
        "quiet_s": quiet_s,
    }
