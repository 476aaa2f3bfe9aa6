"""Which start of the machine this is: what tells a node's processes, sockets and memory from those of another."""

from __future__ import annotations

from pathlib import Path


def boot_id() -> str:
    """Another one after every start of the machine, the same in all containers there."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
