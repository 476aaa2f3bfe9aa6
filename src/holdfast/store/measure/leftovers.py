"""Where a measurement keeps its objects, and how those of one that was killed are known.

    bench/3f2a91c4-12345-1790000000-9c01b7d2/small/00007       boot - process - deadline - nonce

Nothing of Holdfast lists `bench/`: no load, no catalog, no sweep of a run sees it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import time
from dataclasses import dataclass

import psutil

from holdfast.tiers.boot import boot_id
from holdfast.tiers.contract import ABANDONED_S, Tier

BENCH = "bench/"
_GRACE_S = 3600.0
"""How long after its deadline a measurement of another node counts as dead: clocks differ."""

_ROOM = re.compile(r"([0-9a-f]{8})-([0-9]+)-([0-9]+)-([0-9a-f]{8})")


@dataclass(frozen=True, slots=True)
class Room:
    """The objects of one measurement: begins their keys, and the names of their unfinished uploads.

    `boot` is of the node, or of the container in it, that numbered `pid`.
    """

    boot: str
    pid: int
    deadline_unix_s: int
    nonce: str

    @property
    def name(self) -> str:
        return f"{self.boot}-{self.pid}-{self.deadline_unix_s}-{self.nonce}"

    @property
    def prefix(self) -> str:
        return f"{BENCH}{self.name}/"

    @property
    def owner(self) -> str:
        """How a tier names what this measurement has not published."""
        return f"0.bench.{self.name}"

    def is_dead(self, now_unix_s: float) -> bool:
        """Whether nobody can be at work there: the process is gone, or (elsewhere) its deadline is long past."""
        if self.boot == _boot() and not psutil.pid_exists(self.pid):
            return True
        return now_unix_s > self.deadline_unix_s + _GRACE_S


def new_room(pid: int, limit_s: float) -> Room:
    """A room for this process, which will be done within `limit_s`."""
    return Room(_boot(), pid, round(time.time() + limit_s), secrets.token_hex(4))


def room_key(key: str) -> Room | None:
    """The room a key belongs to, None for any other key."""
    match = _ROOM.fullmatch(key.removeprefix(BENCH).partition("/")[0]) if key.startswith(BENCH) else None
    return Room(match[1], int(match[2]), int(match[3]), match[4]) if match else None


def sweep_dead(tier: Tier) -> int:
    """Remove what measurements that were killed left. Returns how many objects and unfinished uploads went.

    The marker, which sorts before the rest of its room, goes last: a sweep that is killed is finished by the next.
    """
    now_unix_s = time.time()
    removed = tier.sweep(owner_prefix="0.bench.", untouched_s=ABANDONED_S)
    dead: dict[Room, list[str]] = {}
    for info in tier.list(BENCH):
        room = room_key(info.key)
        if room is not None and room.is_dead(now_unix_s):
            dead.setdefault(room, []).append(info.key)
    for room, keys in dead.items():
        removed += tier.sweep(owner_prefix=room.owner)
        for key in sorted(keys, reverse=True):
            tier.delete(key)
        removed += len(keys)
    return removed


def marker(room: Room) -> str:
    """The first object of a room: put before anything else, deleted after everything else."""
    return f"{room.prefix}0"


def empty(tier: Tier, room: Room) -> None:
    """Remove everything of a measurement of ours, the marker last. Idempotent."""
    for info in sorted(tier.list(room.prefix), key=lambda info: info.key, reverse=True):
        tier.delete(info.key)


def _boot() -> str:
    """Tells apart what numbers processes: boots of nodes and, in them, containers, which do not see each other's."""
    text = ""
    with contextlib.suppress(OSError):
        text = boot_id() + os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(text.encode()).hexdigest()[:8]
