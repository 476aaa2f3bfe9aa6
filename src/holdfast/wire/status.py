"""What the agent tells of itself to whoever looks: `GET /status`, `GET /history`. Keys are in docs/reference.md.

Every key has a default, so that a command line can read an agent of another version.
"""

from __future__ import annotations

from typing import Any

import msgspec

OK, WARN, BAD = "ok", "warn", "bad"
"""Levels of a problem and of the whole status."""


class Problem(msgspec.Struct, frozen=True):
    """One thing that is not as it should be, and what to do about it."""

    level: str
    what: str
    todo: str = ""


class Trainer(msgspec.Struct, frozen=True):
    """One rank. Steps are -1 for none; `waiting_step` is what it waits for a slot with, right now."""

    rank: int
    pid: int = 0
    alive: bool = False
    attached: bool = False
    closed: bool = False
    step: int = -1
    waiting_step: int = -1
    saves: int = 0
    stall_s: float = 0.0
    stall_last_s: float = 0.0


class Tier(msgspec.Struct, frozen=True):
    """One tier but memory. `waiting` and `running` count images; `oldest_s` is how long the oldest of them waits."""

    name: str
    url: str = ""
    every_steps: int | None = None
    every_s: float | None = None
    keeps: str = ""
    max_bytes_per_s: float | None = None
    lagging: bool = False
    degraded: dict[str, Any] | None = None
    waiting: int = 0
    running: int = 0
    oldest_s: float = 0.0
    flushed_bytes: int = 0
    flush_bytes_per_s: float = 0.0
    newest_committed: int = -1
    recyclable_files: int = 0
    recyclable_bytes: int = 0
    repaired: int = 0

    @property
    def due(self) -> str:
        """When a step is due there, in words."""
        steps = "" if self.every_steps is None else f"every {self.every_steps} steps"
        steps = "every step" if self.every_steps == 1 else steps
        return " or ".join([*([steps] if steps else []), *([f"every {self.every_s:g} s"] if self.every_s else [])])


class Slot(msgspec.Struct, frozen=True):
    """A slot, whose it is and what is in it. `step` and `attempt` are those of its image; -1 and 0: none."""

    slot: int
    rank: int | None = None
    state: str = "free"
    image: str = ""
    attempt: int = 0
    step: int = -1
    pins: int = 0
    flushes: dict[str, str] = {}
    capacity_bytes: int = 0


class Step(msgspec.Struct, frozen=True):
    """A step the agent knows of, in memory and on each tier."""

    step: int
    attempt: int = 0
    memory: str = ""
    tiers: dict[str, str] = {}
    size_bytes: int = 0
    error: str = ""


class Status(msgspec.Struct, frozen=True):
    """Everything. `level`, `headline` and `summary` say in words how things stand."""

    run: str = ""
    home: str = ""
    arena: str = ""
    pid: int = 0
    level: str = OK
    headline: str = ""
    summary: str = ""
    problems: list[Problem] = []
    attempt: int = 0
    superseded_by: int = 0
    launch: str = ""
    world_size: int = 0
    arena_bytes: int = 0
    arena_size: str = ""
    errors: int = 0
    trainers: list[Trainer] = []
    tiers: list[Tier] = []
    slots: list[Slot] = []
    steps: list[Step] = []
    last_errors: list[dict[str, Any]] = []
    """Oldest first; each with `at_s`, when it happened in Unix time."""


class Stall(msgspec.Struct, frozen=True):
    """How long training waited in a save that was over at `at_s` (Unix time), the rank at `step`.

    `saves` above 1: so many ended between two looks at the page, and `stall_s` is their mean.
    """

    at_s: float
    step: int
    stall_s: float
    saves: int = 1


class Flush(msgspec.Struct, frozen=True):
    """One image flushed to a tier, over at `at_s` (Unix time); `error` is empty where it stands there."""

    at_s: float
    attempt: int
    step: int
    rank: int
    image: int
    size_bytes: int
    seconds: float
    error: str = ""


class History(msgspec.Struct, frozen=True):
    """The newest stalls per rank and flushes per tier, oldest first."""

    now_s: float = 0.0
    stalls: dict[int, list[Stall]] = {}
    flushes: dict[str, list[Flush]] = {}
