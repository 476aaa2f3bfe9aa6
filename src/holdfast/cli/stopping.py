"""End a node's agent from outside, and wait until it has ended."""

from __future__ import annotations

import time
from pathlib import Path

from holdfast.cli.arenas import look
from holdfast.errors import DeadlineError
from holdfast.wire.client import AgentClient
from holdfast.wire.messages import Ok, Stop
from holdfast.wire.spawn import SOCKET

_CALL_S = 60.0
_POLL_S = 0.05


def stop_agent(arena: Path, *, discard: bool = False) -> bool:
    """Ask it to end and wait: what follows finds the newest step durable (or, with `discard`, the memory freed).

    Returns: whether one ran. Raises: RunBusyError while trainers live; DeadlineError.
    """
    found = look(arena)
    if not found.alive:
        return False
    AgentClient(arena / SOCKET).post("/stop", Stop(discard=discard), Ok, timeout_s=_CALL_S)
    limit_s = found.settings.close_timeout_s if found.settings else _CALL_S
    deadline = time.monotonic() + limit_s
    while look(arena).alive:
        if time.monotonic() > deadline:
            raise DeadlineError(
                f"the agent of {arena} has not ended within {limit_s:g} s; it may still be flushing",
                hint="look into agent.log there, or ask again",
            )
        time.sleep(_POLL_S)
    return True
