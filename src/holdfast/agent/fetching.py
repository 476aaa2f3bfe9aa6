"""Brings images from tiers into slots: each byte is read once for the whole node, however many ranks ask."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable
from functools import partial

from holdfast.agent.arena import Arena, Slot
from holdfast.agent.executor import Executor
from holdfast.agent.host import Host
from holdfast.agent.readers import Readers
from holdfast.agent.repairing import MEMORY, Repairing
from holdfast.agent.shelf import Shelf
from holdfast.errors import CapacityError, CorruptError, HoldfastError, LoadError, NotFoundError
from holdfast.lifecycle import events
from holdfast.model.identity import CheckpointId, ImageId
from holdfast.model.image import ImageHeader, ImageRecord
from holdfast.store.catalog import Wound
from holdfast.wire import messages
from holdfast.wire.pages import SlotState, barrier
from holdfast.wire.processes import process_start

log = logging.getLogger("holdfast.agent")

_ROOM_POLL_S = 0.02
_ROOM_WAIT_S = 30.0


class Fetching:
    """Invariants: an image is fetched at most once at a time from tiers that answer, and held once; a copy found bad is
    not read again for this launch.

    Threads: the agent's event loop; bytes move in the tiers' pools.
    """

    def __init__(
        self, host: Host, executor: Executor, arena: Arena, shelf: Shelf, readers: Readers, repairing: Repairing
    ) -> None:
        self._host = host
        self._executor = executor
        self._arena = arena
        self._shelf = shelf
        self._readers = readers
        self._repairing = repairing
        self._process = os.getpid(), process_start(os.getpid())
        self._bad: set[tuple[str, ImageId]] = set()
        self._fetching: dict[ImageId, asyncio.Task[str]] = {}
        self._reading: dict[asyncio.Task[str], str] = {}
        """Per fetch the tier it reads from just now. Of an image there are two while a tier hangs."""

    def _places(self, image: ImageId, tiers: list[str]) -> list[str]:
        """Those of the tiers whose copy was not found bad."""
        return [t for t in tiers if (t, image) not in self._bad]

    def is_good(self, tier: str, images: Iterable[ImageId]) -> bool:
        """Whether no copy there of these images was found bad."""
        return not any((tier, image) in self._bad for image in images)

    def forget(self) -> None:
        """A new launch: it may find good what was bad."""
        self._bad.clear()

    async def bring(
        self, rank: int, checkpoint: CheckpointId, record: ImageRecord, tiers: list[str]
    ) -> messages.FetchedImage:
        """An image of the checkpoint (staged with it or before) in a slot, pinned for `rank`: where it is, or fetched
        once however many ranks ask."""
        source = MEMORY
        while True:
            if not self._readers.reads(rank, checkpoint):
                raise LoadError(f"rank {rank} gave the load of {checkpoint} up", step=checkpoint.step)
            for number, held in self._executor.held().items():
                if held == record:
                    # Found and pinned without giving up the loop: it cannot be freed in between.
                    self._readers.pin(rank, number)
                    generation = self._arena.slots[number].page.generation
                    return messages.FetchedImage(
                        record.id, number, generation, record.size_bytes, record.crc64nvme, source
                    )
            if not self._is_fetched(record.id, tiers):
                task = asyncio.create_task(self._fetch(rank, checkpoint, record, tiers))
                self._fetching[record.id] = task
                task.add_done_callback(partial(self._fetched, record.id))
            source = await asyncio.shield(self._fetching[record.id])

    def _is_fetched(self, image: ImageId, tiers: list[str]) -> bool:
        """Whether a fetch is worth waiting for: one from a tier that could not be listed since may hang for ever."""
        task = self._fetching.get(image)
        return task is not None and (task not in self._reading or self._reading[task] in tiers)

    def _fetched(self, image: ImageId, task: asyncio.Task[str]) -> None:
        self._reading.pop(task, None)
        if self._fetching.get(image) is task:
            del self._fetching[image]
        if not task.cancelled():
            task.exception()  # else asyncio complains where nobody waits for it any more

    async def _fetch(self, rank: int, checkpoint: CheckpointId, record: ImageRecord, tiers: list[str]) -> str:
        """Bring an image into a slot from the nearest tier that gives it whole; the tier's name."""
        errors: list[str] = []
        wounds: list[Wound] = []
        task = self._fetching[record.id]  # this one: it is there before it begins
        for tier in self._places(record.id, tiers):
            slot = await self._room(record.size_bytes)
            if (other := self._fetching.get(record.id, task)) is not task:
                slot.page.state = SlotState.FREE
                await asyncio.wait({other})  # begun while this one hung; if that fails, too, one begins anew
                return tier
            self._reading[task] = tier
            try:
                header = await asyncio.get_running_loop().run_in_executor(
                    self._shelf.tiers.fetches(tier),
                    self._shelf.contents.fetch,
                    tier,
                    record,
                    slot.room(record.size_bytes),
                )
            except Exception as e:
                slot.page.state = SlotState.FREE
                if not isinstance(e, HoldfastError):
                    raise
                errors.append(f"{tier}: {e.message}")
                if isinstance(e, CorruptError | NotFoundError):
                    wounds.append(Wound(tier, record.id, e.message))
                self._bad.add((tier, record.id))
                self._host.reported(e.to_dict())
                continue
            if record in self._executor.held().values():
                slot.page.state = SlotState.FREE  # another tier was asked meanwhile, and was quicker
                return tier
            self._hold(rank if self._readers.reads(rank, checkpoint) else None, slot, record, header, frozenset(tiers))
            log.info("fetched %s from %s", record.id, tier)
            self._repairing.soon(checkpoint, wounds)
            return tier
        raise LoadError(f"{record.id}: {'; '.join(errors) or 'no copy is left'}", step=record.id.step)

    async def _room(self, size_bytes: int) -> Slot:
        """A slot for a fetch, FILLING by this agent; older memory yields if need be."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _ROOM_WAIT_S
        while True:
            try:
                slot = self._arena.take_loose(size_bytes)
                break
            except CapacityError:
                if loop.time() > deadline:
                    raise
                if not self._borrow(size_bytes):
                    self._executor.tell_node(events.RoomWanted())
                    await asyncio.sleep(_ROOM_POLL_S)
        slot.page.owner_pid, slot.page.owner_start = self._process
        slot.page.generation += 1
        slot.page.state = SlotState.FILLING
        if not slot.ready:
            try:
                await loop.run_in_executor(self._shelf.faulting, self._arena.make_ready, slot)
            except HoldfastError:
                self._arena.remove(slot)
                raise
        return slot

    def _borrow(self, size_bytes: int) -> bool:
        """Take a free slot back from a rank that is loading: it waits for us and saves nothing meanwhile."""
        for slot in self._arena.find(SlotState.FREE):
            if self._readers.is_loading(slot.page.dealt_rank) and slot.capacity_bytes >= size_bytes:
                slot.page.dealt_rank = -1
                self._executor.tell_node(events.Undealt(slot.number))
                return True
        return False

    def _hold(
        self, rank: int | None, slot: Slot, record: ImageRecord, header: ImageHeader, tiers: frozenset[str]
    ) -> None:
        """From filling to held, pinned for the rank that asked: an older step than memory keeps would go at once."""
        page, image = slot.page, record.id
        page.attempt, page.step, page.rank, page.image = image.attempt, image.step, image.rank, image.image
        page.world_size, page.image_count = header.world_size, header.image_count
        page.relies_on_step = max((i.step for i in header.relies_on), default=-1)
        page.image_bytes, page.crc64nvme, page.due_mask = record.size_bytes, record.crc64nvme, 0
        page.committed_mask = sum(self._host.mask_of(t) for t in tiers)
        barrier()
        page.state = SlotState.HELD
        pins = 0 if rank is None else 1
        if rank is not None:
            self._readers.note(rank, slot.number)
        self._executor.tell_node(events.Fetched(slot.number, page.generation, record, header, tiers, pins))
