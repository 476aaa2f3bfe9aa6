"""Whether the arena has room: the sum of file system, budget and memory limits against what a state needs."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from holdfast.cli.health.finding import Finding, bad, ok, warn
from holdfast.cli.health.limits import memory_limits, tightest
from holdfast.config import Settings
from holdfast.tiers.posix.mounts import existing, mount_of
from holdfast.units import format_bytes

_LARGER = (
    "set HOLDFAST_ARENA_DIR to a larger memory file system, or enlarge this one: docker run --shm-size=..., an "
    "emptyDir of medium Memory in Kubernetes, mount -o remount,size=..."
)
_SMALL_BYTES = 1 << 30


def arena_room(settings: Settings, state_bytes: int | None, in_use_bytes: int) -> list[Finding]:
    """`in_use_bytes` is what the run's arena holds already: it is reused, so it counts as room."""
    where = existing(Path(settings.arena_dir))
    stat = os.statvfs(where)
    free_bytes = stat.f_bavail * stat.f_frsize
    found = [_kind(where, free_bytes, stat.f_blocks * stat.f_frsize)]
    rooms = {
        "free in the file system": free_bytes + in_use_bytes,
        "of memory available": psutil.virtual_memory().available + in_use_bytes,
    }
    limit = tightest(memory_limits())
    if limit is not None:
        rooms["left under the memory limit"] = limit.left_bytes + in_use_bytes
        found.append(_limit(limit.limit_bytes, limit.left_bytes, limit.cgroup))
    if settings.arena_budget_bytes:
        rooms["in the arena's budget"] = settings.arena_budget_bytes
    found.append(_fits(settings, rooms, state_bytes))
    return found


def _kind(where: Path, free_bytes: int, total_bytes: int) -> Finding:
    mount = mount_of(where)
    text = f"{where} is {mount.type}, {format_bytes(free_bytes)} of {format_bytes(total_bytes)} free"
    if not os.access(where, os.W_OK | os.X_OK):
        return bad(
            "arena-directory",
            f"{text}; this user may not write there",
            "set HOLDFAST_ARENA_DIR to a directory of yours",
        )
    if not mount.in_memory:
        return warn(
            "arena-directory", f"{text}: slots there are written to a disk", "set HOLDFAST_ARENA_DIR to a tmpfs"
        )
    if total_bytes < _SMALL_BYTES:
        return warn("arena-directory", f"{text}: small for a training state", _LARGER)
    return ok("arena-directory", text)


def _limit(limit_bytes: int, left_bytes: int, cgroup: str) -> Finding:
    return ok(
        "memory-limit",
        f"{cgroup} allows {format_bytes(limit_bytes)}, {format_bytes(left_bytes)} left; the arena counts against it, "
        "beside the job's own memory",
    )


def _fits(settings: Settings, rooms: dict[str, int], state_bytes: int | None) -> Finding:
    tight = min(rooms, key=lambda name: rooms[name])
    slots = settings.slots_per_rank
    have = f"{format_bytes(rooms[tight])} {tight}"
    if state_bytes is None:
        largest = format_bytes(rooms[tight] // slots)
        return ok("arena-room", f"room for a state of {largest} on this node: {slots} slots in {have}")
    need_bytes = slots * state_bytes
    text = (
        f"a state of {format_bytes(state_bytes)} on this node needs {slots} slots, {format_bytes(need_bytes)}; {have}"
    )
    if need_bytes > rooms[tight]:
        return bad("arena-room", text, f"lower keep_last of the memory tier, or {_LARGER}")
    return ok("arena-room", text)
