"""Re-makes bad copies on tiers, from this node's memory or from another tier: what a load found, what a person asks."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from holdfast.agent.arena import Arena
from holdfast.agent.executor import Executor
from holdfast.agent.host import Host
from holdfast.agent.shelf import Shelf
from holdfast.errors import CorruptError, HoldfastError, UsageError
from holdfast.lifecycle import events
from holdfast.model.identity import CheckpointId, ImageId
from holdfast.model.image import ImageRecord
from holdfast.store.catalog import Wound
from holdfast.wire import messages

log = logging.getLogger("holdfast.agent")

T = TypeVar("T")

MEMORY = "memory"
_MOST_WAITING = 256
"""More than that a load does not leave behind: the rest is found again by the next load, or by `holdfast verify`."""


@dataclass(frozen=True, slots=True)
class _Job:
    tier: str
    checkpoint: CheckpointId
    image: ImageId | None


class Repairing:
    """Invariants: on a tier one copy is re-made at a time, and one that hangs holds up no other; a copy waits once;
    what was tried for a load is not tried again for the same launch.

    Threads: the agent's event loop; bytes move in the shelf's pools.
    """

    def __init__(
        self,
        host: Host,
        executor: Executor,
        arena: Arena,
        shelf: Shelf,
        list_again: Callable[[], Awaitable[None]],
    ) -> None:
        self._host = host
        self._executor = executor
        self._arena = arena
        self._shelf = shelf
        self._list_again = list_again
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._asked: set[_Job] = set()

    def forget(self) -> None:
        """A new launch: what could not be repaired may be tried again."""
        self._asked.clear()

    def soon(self, checkpoint: CheckpointId, wounds: list[Wound]) -> None:
        """A load found these bad, and a good copy elsewhere: re-make them in the background, and report."""
        jobs = {_Job(w.tier, checkpoint, w.image): w.reason for w in wounds}
        new = {job: why for job, why in jobs.items() if job not in self._asked}
        if new and len(self._asked) + len(new) <= _MOST_WAITING:
            self._asked.update(new)
            for tier in sorted({job.tier for job in new}):
                self._host.later(self._all({job: why for job, why in new.items() if job.tier == tier}))

    async def _all(self, jobs: dict[_Job, str]) -> None:
        for job, why in jobs.items():
            try:
                await self._repair(job, why)
            except HoldfastError as e:
                self._host.reported(e.to_dict())
        await self._list_again()

    async def repair(self, body: messages.Repair) -> messages.Repaired:
        """A person wants a copy re-made.

        Raises: UsageError for a tier this agent does not have; CorruptError when no good copy is left; TierError.
        """
        tier = next((r.name for r in self._host.settings.beyond_memory if r.url == body.url), None)
        if tier is None:
            raise UsageError(f"{body.url} is no tier of this run's agent", hint="end the job, or name its home's URL")
        source = await self._repair(_Job(tier, body.checkpoint, body.image), body.reason)
        await self._list_again()
        return messages.Repaired(source)

    async def _repair(self, job: _Job, why: str) -> str:
        """Where the good copy came from."""
        async with self._turns[job.tier]:
            if job.image is None:
                source = await self._on(job.tier, self._shelf.remaking.manifest, job.tier, job.checkpoint)
            else:
                source = await self._repair_image(job, job.image, why)
        self._shelf.remaking.repaired[job.tier] += 1
        log.warning("repaired %s on %s from %s: %s", job.image or job.checkpoint, job.tier, source, why)
        return source

    async def _repair_image(self, job: _Job, image: ImageId, why: str) -> str:
        record = await self._host.in_thread(self._shelf.remaking.record, job.checkpoint, image)
        slot = self._slot_of(image, record)
        if slot is None:
            if record is None:
                raise CorruptError(f"no manifest says what {image} has to be", tier=job.tier, step=image.step)
            return await self._on(job.tier, self._shelf.remaking.image, job.tier, record, job.checkpoint, why)
        held = self._executor.held()[slot]
        # Found and pinned without giving up the loop: it cannot be freed in between.
        self._executor.tell_node(events.Pinned(slot))
        try:
            room = self._arena.slots[slot].image
            await self._on(job.tier, self._shelf.remaking.from_memory, job.tier, held, room, job.checkpoint, why)
        finally:
            self._executor.tell_node(events.Unpinned(slot))
        return MEMORY

    async def _on(self, tier: str, work: Callable[..., T], *args: Any) -> T:
        """Run in the threads of the tier that is written to; others are read for so long only."""
        return await asyncio.get_running_loop().run_in_executor(self._shelf.tiers.acts(tier), work, *args)

    def _slot_of(self, image: ImageId, record: ImageRecord | None) -> int | None:
        """A slot that holds the image as its manifest has it."""
        held = self._executor.held().items()
        return next((n for n, h in held if h.id == image and record in (None, h)), None)
