"""The agent's log. It lies in the arena, which is memory: of what an agent says in months the newest is kept."""

from __future__ import annotations

import logging
import os
from logging.handlers import RotatingFileHandler
from pathlib import Path

from holdfast.wire.spawn import LOG

_LOG_BYTES = 4 << 20
"""Of each of two files: the one before has the same name with `.1`."""
_STDERR = 2
_FORMAT = "%(asctime)s %(levelname)s %(message)s"


class _Log(RotatingFileHandler):
    """What Python itself says of a crash goes to the newer file, too."""

    def doRollover(self) -> None:
        super().doRollover()
        assert self.stream is not None  # it has been opened again
        os.dup2(self.stream.fileno(), _STDERR)


def begin_log() -> None:
    """Log to standard error: the arena's log when a trainer started this agent, a terminal when a person did."""
    logging.basicConfig(level=logging.INFO, format=_FORMAT)


def bound_log(arena: Path) -> None:
    """From now on keep the newest only, if that is the arena's log. For the agent that holds the lock: no other one may
    move the file."""
    try:
        if not os.path.samestat(os.fstat(_STDERR), os.stat(arena / LOG)):
            return
    except OSError:
        return
    newest = _Log(arena / LOG, maxBytes=_LOG_BYTES, backupCount=1, encoding="utf-8")
    logging.basicConfig(level=logging.INFO, format=_FORMAT, handlers=[newest], force=True)
