"""Memory that a variant takes beside its state, seen from the machine: no process is asked, none is counted twice."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

_EVERY_S = 0.02
_FREE = ("MemFree", "Buffers", "Cached", "SReclaimable")


def used_bytes(meminfo: str | None = None) -> int:
    """Memory in use by processes and in memory file systems, without the page cache."""
    text = Path("/proc/meminfo").read_text() if meminfo is None else meminfo
    pairs = (line.split(":", 1) for line in text.splitlines())
    kib = {name: int(value.split()[0]) for name, value in pairs}
    return 1024 * (kib["MemTotal"] - sum(kib[name] for name in _FREE) + kib["Shmem"])


class Account:
    """What one variant holds. Only one is active at a time, so what changes meanwhile is its own.

    Valid: on a machine where nothing else runs.
    """

    def __init__(self) -> None:
        self._held_bytes = 0
        self.peak_bytes = 0

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """While the variant acts. `peak_bytes` is then the most it held in this time."""
        before, most, end = used_bytes(), [0], threading.Event()

        def watch() -> None:
            while not end.wait(_EVERY_S):
                most[0] = max(most[0], used_bytes())

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield
        finally:
            end.set()
            watcher.join()
            after = used_bytes()
            self.peak_bytes = max(0, self._held_bytes + max(most[0], after) - before)
            self._held_bytes += after - before
