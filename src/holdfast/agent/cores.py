"""On which cores the agent runs: by default where no trainer may, as far as there are such."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Collection, Iterable
from pathlib import Path

from holdfast.config.values import parse_cores

log = logging.getLogger("holdfast.agent")


class Cores:
    """The cores that this process was moved to last. Threads: the agent's event loop only."""

    def __init__(self) -> None:
        self._chosen: frozenset[int] = frozenset()

    def choose(self, setting: str, trainers: Iterable[int]) -> None:
        """Move to where the setting says, seen from these trainers."""
        chosen = choose(setting, node=cores_of_node(), trainers=cores_of(trainers))
        move_to(chosen)
        if chosen != self._chosen:
            log.info("runs on cores %s", sorted(chosen))
            self._chosen = chosen


def choose(setting: str, *, node: frozenset[int], trainers: Iterable[frozenset[int]]) -> frozenset[int]:
    """The agent's cores.

    Args:
        setting: see `Settings.agent_cores`.
        node: the cores this process may have at all.
        trainers: where each trainer may run.

    Returns: never empty: where the setting leaves nothing, all of the node's.
    """
    if setting == "all":
        return node
    if setting == "outside":
        return node.difference(*trainers) or node
    return (node & parse_cores(setting)) or node


def cores_of_node() -> frozenset[int]:
    """Every core this process may have, whatever its starter was bound to: a bound trainer hands its mask down.

    Changes the affinity of the calling thread; `move_to` sets it right.
    """
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    return frozenset(os.sched_getaffinity(0))


def cores_of(pids: Iterable[int]) -> list[frozenset[int]]:
    """Where these processes may run; those that are gone are passed over."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            found.append(frozenset(os.sched_getaffinity(pid)))
    return found


def move_to(cores: Collection[int]) -> None:
    """Have every thread of this process run there; later threads follow the one that starts them."""
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it ended just now
            os.sched_setaffinity(int(task.name), cores)
