"""Memory limits of the cgroups this process is in. What stands on a tmpfs counts against them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_UNLIMITED_BYTES = 1 << 60
"""cgroup v1 writes "no limit" as a number near 2**63."""


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """One cgroup's limit and what is used of it."""

    cgroup: str
    limit_bytes: int
    used_bytes: int

    @property
    def left_bytes(self) -> int:
        return max(0, self.limit_bytes - self.used_bytes)


def memory_limits(sys_fs: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[MemoryLimit]:
    """The limits of this process's cgroup and of all above it, both versions of cgroups."""
    return list({limit.cgroup: limit for limit in _limits(sys_fs, own)}.values())


def tightest(limits: list[MemoryLimit]) -> MemoryLimit | None:
    """The one that leaves the least."""
    return min(limits, key=lambda limit: limit.left_bytes, default=None)


def _limits(sys_fs: Path, own: Path) -> Iterator[MemoryLimit]:
    for line in _read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _upwards(sys_fs, path, "memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            yield from _upwards(sys_fs / "memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes")


def _upwards(root: Path, path: str, limit: str, used: str) -> Iterator[MemoryLimit]:
    group = root / path.lstrip("/")
    # A container may show its cgroup under a path that is not mounted here; the mounted root is then its own.
    for directory in (group, *group.parents):
        limit_bytes, used_bytes = _read(directory / limit).strip(), _read(directory / used).strip()
        if limit_bytes.isdigit() and used_bytes.isdigit() and int(limit_bytes) < _UNLIMITED_BYTES:
            yield MemoryLimit(str(directory), int(limit_bytes), int(used_bytes))
        if directory == root:
            return


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text()
    return ""
