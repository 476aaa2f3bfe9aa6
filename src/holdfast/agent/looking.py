"""Looks at the agent's parts for status, metrics and page, and remembers what passes: stalls, arrivals in slots."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.agent.arena import Arena
from holdfast.agent.executor import Executor
from holdfast.agent.history import Arrivals, StallLog
from holdfast.agent.host import Host
from holdfast.agent.launches import Launches, Trainer
from holdfast.agent.shelf import Shelf
from holdfast.agent.view import AgentView, Shelved, SlotRoom
from holdfast.model.identity import CheckpointId
from holdfast.wire import status as told
from holdfast.wire.pages import RunPage


class Looking:
    """Threads: the agent's event loop only."""

    def __init__(
        self, host: Host, executor: Executor, arena: Arena, shelf: Shelf, launches: Launches, run_page: RunPage
    ) -> None:
        self._host = host
        self._executor = executor
        self._arena = arena
        self._shelf = shelf
        self._launches = launches
        self._run_page = run_page
        self._stalls = StallLog()
        self._arrivals = Arrivals()

    def glance(self) -> None:
        """After every poll: what would be gone by the time somebody asks."""
        self._stalls.look(self._launches.trainers.values(), time.time())
        self._arrivals.look(self._arena.slots.values(), time.monotonic())

    def view(self, errors: Sequence[tuple[float, Mapping[str, Any]]]) -> AgentView:
        """Everything as it is now; `errors` with the Unix time of each."""
        return AgentView(
            settings=self._host.settings,
            arena=self._arena.root,
            now_s=time.time(),
            pid=os.getpid(),
            attempt=self._run_page.attempt,
            superseded_by=self._run_page.superseded_by,
            launch=self._launches.launch,
            world_size=self._launches.world_size,
            arena_bytes=self._arena.used_bytes,
            error_count=self._run_page.errors,
            errors=errors,
            trainers=[_trainer(t) for _, t in sorted(self._launches.trainers.items())],
            tiers=self._executor.node.tiers(),
            slots=self._executor.node.slots(),
            steps=self._executor.run.steps(),
            rooms=self._rooms(),
            shelved=self._shelved(),
            committed=self._committed(),
        )

    def history(self) -> told.History:
        """The newest stalls and flushes."""
        return told.History(time.time(), self._stalls.stalls(), self._shelf.keeping.flushes.flushes())

    def _rooms(self) -> dict[int, SlotRoom]:
        now_s = time.monotonic()
        return {
            n: SlotRoom(slot.page, slot.capacity_bytes, self._arrivals.age_s(n, now_s))
            for n, slot in self._arena.slots.items()
        }

    def _shelved(self) -> dict[str, Shelved]:
        totals = self._shelf.keeping.flushes.totals()
        return {
            n: Shelved(
                *totals.get(n, (0, 0.0)),
                self._shelf.tiers.limit_of(n),
                *self._shelf.tiers.recyclable(n),
                self._shelf.remaking.repaired[n],
            )
            for n in (r.name for r in self._host.settings.beyond_memory)
        }

    def _committed(self) -> dict[str, CheckpointId]:
        standing = {r.name: self._executor.run.committed(r.name) for r in self._host.settings.beyond_memory}
        return {name: max(found) for name, found in standing.items() if found}


def _trainer(trainer: Trainer) -> told.Trainer:
    page = trainer.page
    return told.Trainer(
        rank=trainer.rank,
        pid=page.pid,
        alive=trainer.alive,
        attached=trainer.attached,
        closed=trainer.closed,
        step=page.current_step,
        waiting_step=page.waiting_step,
        saves=page.saves,
        stall_s=page.stall_ns / 1e9,
        stall_last_s=page.stall_last_ns / 1e9,
    )
