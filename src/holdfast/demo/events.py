"""What happened, one JSON line each. Every number the demo shows is computed from these lines and nothing else."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

Event = dict[str, Any]
"""Always has `what`, `t` (seconds of the machine's monotonic clock, the same for all processes) and `who`."""


class EventLog:
    """Appends events to a file of its own. A line is one write, so a SIGKILL leaves it whole or absent."""

    def __init__(self, path: Path, **always: Any) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._always = always

    def __call__(self, what: str, **fields: Any) -> None:
        event = {"t": round(time.monotonic(), 6), "what": what, **self._always, **fields}
        os.write(self._fd, json.dumps(event).encode() + b"\n")

    def close(self) -> None:
        os.close(self._fd)


class Tail:
    """Reads what was appended to a folder's event logs since the last look."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read_bytes: dict[Path, int] = {}

    def new(self) -> list[Event]:
        """Whole lines only, in the order of time."""
        events: list[Event] = []
        for path in self._folder.glob("*.jsonl"):
            done = self._read_bytes.get(path, 0)
            if path.stat().st_size > done:
                with path.open("rb") as file:
                    file.seek(done)
                    data = file.read()
                whole = data[: data.rfind(b"\n") + 1]
                self._read_bytes[path] = done + len(whole)
                events += [json.loads(line) for line in whole.splitlines()]
        return sorted(events, key=lambda e: e["t"])


def process_age_s() -> float:
    """Seconds since this process was started: what Python and its imports took before the first line could log."""
    stat = Path("/proc/self/stat").read_text()
    started_ticks = int(stat[stat.rindex(")") + 2 :].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK")
