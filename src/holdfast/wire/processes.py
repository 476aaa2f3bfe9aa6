"""Processes by pid and start time, which together name one for good."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def process_start(pid: int) -> int:
    """Start time of a process in clock ticks since boot; 0 when there is no such process.

    With the pid it names a process for good: pids are reused, the pair is not.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    fields = stat[stat.rindex(b")") + 2 :].split()
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


def process_alive(pid: int, start: int) -> bool:
    """Whether exactly that process still exists (a zombie does not)."""
    try:
        return pid != 0 and start != 0 and process_start(pid) == start
    except OSError as e:
        if e.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        return _answers_signals(pid)


def _answers_signals(pid: int) -> bool:
    """What can be told with no descriptor left: a process, or zombie, of that number exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
