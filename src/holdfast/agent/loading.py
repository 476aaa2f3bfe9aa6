"""The agent's part of a load: which checkpoint is the newest loadable, and bringing its images into slots, each byte
read once for the whole node."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from holdfast.agent.arena import Slot
from holdfast.agent.images import Headers, check_image
from holdfast.agent.readers import Readers
from holdfast.errors import CapacityError, HoldfastError, LoadError, NotFoundError
from holdfast.lifecycle import events
from holdfast.model.identity import CheckpointId, ImageId
from holdfast.model.image import ImageHeader, ImageRecord
from holdfast.wire import messages
from holdfast.wire.pages import SlotState, barrier

if TYPE_CHECKING:
    from holdfast.agent.agent import Agent

log = logging.getLogger("holdfast.agent")

_SETTLE_POLL_S = 0.01
_FORMING_WAIT_S = 5.0
_ROOM_POLL_S = 0.02
_ROOM_WAIT_S = 30.0
MEMORY = "memory"


@dataclass(slots=True)
class _Candidate:
    """A checkpoint that may load: its images, and on which tiers it is committed."""

    checkpoint: CheckpointId
    images: dict[ImageId, ImageRecord] = field(default_factory=dict)
    tiers: list[str] = field(default_factory=list)


class Loading:
    """Invariants: a slot that was handed to a loading rank stays pinned until `unpin` of that rank, or its death.

    Threads: the agent's event loop; bytes move in the shelf's pools.
    """

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._headers = Headers()
        self._readers = Readers(agent.executor)
        self._bad: set[tuple[str, ImageId]] = set()
        self._fetching: dict[ImageId, asyncio.Task[str]] = {}

    # -- which --------------------------------------------------------------------------------------------------------
    async def loadable(self, *, step: int | None, below: CheckpointId | None) -> messages.Loadable:
        """The newest loadable checkpoint of the lineage (`step`: that one; `below`: older than that)."""
        await self._settle()
        view = await self._agent.in_thread(self._agent.shelf.view)
        memory = self._in_memory()
        ids = memory.keys() | view.committed.keys()
        if view.attempts:  # else: a tier that outlived the one with the claims; the newest of what it has counts
            ids = {c for c in ids if c in view.lineage}
        ids -= view.tombstoned
        problems = list(view.problems)
        for checkpoint in sorted(ids, reverse=True):
            if (step is not None and checkpoint.step != step) or (below is not None and checkpoint >= below):
                continue
            try:
                candidate = await self._candidate(checkpoint, memory, view.committed.get(checkpoint, []))
            except HoldfastError as e:
                problems.append(f"{checkpoint}: {e.message}")
                continue
            return messages.Loadable(checkpoint, self._copies(candidate), False, problems)
        empty = view.empty and not memory
        if view.abandoned and not problems:
            problems.append(f"{len(view.abandoned)} checkpoint(s) of abandoned attempts are not on the lineage")
        return messages.Loadable(None, [], empty, problems)

    async def _settle(self) -> None:
        """Wait until nothing that may become whole is still being checksummed or checked for coverage.

        A step that never becomes whole is not waited for long: its ranks are gone, and the run machine drops it.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        while self._checking() and loop.time() < began + self._agent.settings.load_timeout_s:
            await asyncio.sleep(_SETTLE_POLL_S)
        while self._forming() and loop.time() < began + _FORMING_WAIT_S:
            await asyncio.sleep(_SETTLE_POLL_S)

    def _checking(self) -> bool:
        return any(v.state in ("sealing", "verifying") for v in self._agent.executor.node.slots())

    def _forming(self) -> bool:
        return any(s.memory == "staged" for s in self._agent.executor.run.steps())

    def _in_memory(self) -> dict[CheckpointId, dict[ImageId, tuple[Slot, ImageRecord]]]:
        """Whole checkpoints in this node's slots."""
        found: dict[CheckpointId, dict[ImageId, tuple[Slot, ImageRecord]]] = {}
        for number, record in self._agent.executor.held().items():
            slot = self._agent.arena.slots[number]
            found.setdefault(record.id.checkpoint, {})[record.id] = (slot, record)
        return {c: images for c, images in found.items() if c in self._agent.executor.whole()}

    async def _candidate(
        self,
        checkpoint: CheckpointId,
        memory: dict[CheckpointId, dict[ImageId, tuple[Slot, ImageRecord]]],
        tiers: list[str],
    ) -> _Candidate:
        if checkpoint in memory:
            return _Candidate(checkpoint, {i: r for i, (_, r) in memory[checkpoint].items()}, tiers)
        errors: list[str] = []
        for tier in tiers:
            try:
                manifest = await self._agent.in_thread(self._agent.shelf.manifest, tier, checkpoint)
            except HoldfastError as e:
                errors.append(f"{tier}: {e.message}")
                continue
            return _Candidate(checkpoint, {r.id: r for r in manifest.images}, tiers)
        raise LoadError("; ".join(errors) or "no copy is left")

    def _copies(self, candidate: _Candidate) -> list[messages.ImageCopies]:
        held = {r.id for r in self._agent.executor.held().values()}
        return [
            messages.ImageCopies(
                r.id, r.size_bytes, r.crc64nvme, [MEMORY] * (r.id in held) + self._places(r.id, candidate.tiers)
            )
            for r in candidate.images.values()
        ]

    def _places(self, image: ImageId, tiers: list[str]) -> list[str]:
        return [t for t in tiers if (t, image) not in self._bad]

    # -- bring --------------------------------------------------------------------------------------------------------
    async def fetch(self, body: messages.Fetch) -> messages.FetchAnswer:
        """Every image of the checkpoint in a verified, pinned slot.

        Raises: LoadError naming every copy that was tried; CapacityError.
        """
        self._readers.begin(body.rank, body.checkpoint)
        try:
            return messages.FetchAnswer(await self._fetch_all(body.checkpoint, body.rank))
        except BaseException:
            if self._readers.reads(body.rank, body.checkpoint):
                self._readers.end(body.rank)
            raise

    async def _fetch_all(self, checkpoint: CheckpointId, rank: int) -> list[messages.FetchedImage]:
        view = await self._agent.in_thread(self._agent.shelf.view)
        candidate = await self._candidate(checkpoint, self._in_memory(), view.committed.get(checkpoint, []))
        records = [record for _, record in sorted(candidate.images.items())]
        tasks = [asyncio.create_task(self._one(rank, record, candidate.tiers)) for record in records]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            # Where one failed, none of the others may pin anything any more; what they wait for comes all the same.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, rank: int, record: ImageRecord, tiers: list[str]) -> messages.FetchedImage:
        """An image in a slot, pinned for `rank`: where it is, or fetched once however many ranks ask."""
        source = MEMORY
        while True:
            if not self._readers.reads(rank, record.id.checkpoint):
                raise LoadError(f"rank {rank} gave the load of {record.id.checkpoint} up", step=record.id.step)
            for number, held in self._agent.executor.held().items():
                if held == record:
                    # Found and pinned without giving up the loop: it cannot be freed in between.
                    self._readers.pin(rank, number)
                    generation = self._agent.arena.slots[number].page.generation
                    return messages.FetchedImage(
                        record.id, number, generation, record.size_bytes, record.crc64nvme, source
                    )
            if record.id not in self._fetching:
                task = asyncio.create_task(self._fetch(rank, record, tiers))
                self._fetching[record.id] = task
                task.add_done_callback(partial(self._fetched, record.id))
            source = await asyncio.shield(self._fetching[record.id])

    def _fetched(self, image: ImageId, task: asyncio.Task[str]) -> None:
        self._fetching.pop(image, None)
        if not task.cancelled():
            task.exception()  # else asyncio complains where nobody waits for it any more

    async def _fetch(self, rank: int, record: ImageRecord, tiers: list[str]) -> str:
        """Bring an image into a slot from the nearest tier that gives it whole; the tier's name."""
        errors: list[str] = []
        for tier in self._places(record.id, tiers):
            slot = await self._room(record.size_bytes)
            try:
                header = await asyncio.get_running_loop().run_in_executor(
                    self._agent.shelf.fetches, self._read, tier, record, slot
                )
            except Exception as e:
                slot.page.state = SlotState.FREE
                if not isinstance(e, HoldfastError):
                    raise
                errors.append(f"{tier}: {e.message}")
                self._bad.add((tier, record.id))
                self._agent.reported(e.to_dict())
                continue
            self._hold(rank, slot, record, header, frozenset(tiers))
            log.info("fetched %s from %s", record.id, tier)
            return tier
        raise LoadError(f"{record.id}: {'; '.join(errors) or 'no copy is left'}", step=record.id.step)

    async def _room(self, size_bytes: int) -> Slot:
        """A slot for a fetch, FILLING by this agent; older memory yields if need be."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _ROOM_WAIT_S
        while True:
            try:
                slot = self._agent.arena.take_loose(size_bytes)
                break
            except CapacityError:
                if loop.time() > deadline:
                    raise
                if not self._borrow(size_bytes):
                    await asyncio.sleep(_ROOM_POLL_S)
        slot.page.owner_pid, slot.page.owner_start = self._agent.run_page.agent_pid, self._agent.run_page.agent_start
        slot.page.generation += 1
        slot.page.state = SlotState.FILLING
        if not slot.ready:
            try:
                await loop.run_in_executor(self._agent.shelf.faulting, self._agent.arena.make_ready, slot)
            except HoldfastError:
                self._agent.arena.remove(slot)
                raise
        return slot

    def _borrow(self, size_bytes: int) -> bool:
        """Take a free slot back from a rank that is loading: it waits for us and saves nothing meanwhile."""
        for slot in self._agent.arena.find(SlotState.FREE):
            if self._readers.is_loading(slot.page.dealt_rank) and slot.capacity_bytes >= size_bytes:
                slot.page.dealt_rank = -1
                self._agent.executor.tell_node(events.Undealt(slot.number))
                return True
        return False

    def _read(self, tier: str, record: ImageRecord, slot: Slot) -> ImageHeader:
        """In a thread: the bytes, proven."""
        room = slot.room(record.size_bytes)
        self._agent.shelf.fetch(tier, record, room)
        _, header = check_image(room, record.id, self._headers)
        return header

    def _hold(self, rank: int, slot: Slot, record: ImageRecord, header: ImageHeader, tiers: frozenset[str]) -> None:
        """From filling to held, pinned for the rank that asked: an older step than memory keeps would go at once."""
        page, image = slot.page, record.id
        page.attempt, page.step, page.rank, page.image = image.attempt, image.step, image.rank, image.image
        page.world_size, page.image_count = header.world_size, header.image_count
        page.image_bytes, page.crc64nvme, page.due_mask = record.size_bytes, record.crc64nvme, 0
        page.committed_mask = sum(self._agent.mask_of(t) for t in tiers)
        barrier()
        page.state = SlotState.HELD
        pins = int(self._readers.reads(rank, image.checkpoint))
        if pins:
            self._readers.note(rank, slot.number)
        self._agent.executor.tell_node(events.Fetched(slot.number, page.generation, record, header, tiers, pins))

    # -- afterwards ---------------------------------------------------------------------------------------------------
    def unpin(self, rank: int) -> None:
        """A rank's load is over, or the rank is gone."""
        self._readers.end(rank)

    async def unpinned(self, body: messages.Unpin) -> messages.Ok:
        """A rank says that its load is over."""
        self.unpin(body.rank)
        return messages.Ok()

    def forget(self) -> None:
        """A new launch: what the old ranks were reading, and what they found bad on tiers, is over."""
        self._readers.end_all()
        self._bad.clear()

    async def bad_image(self, body: messages.BadImage) -> messages.Ok:
        """A trainer found a held image bad: it goes, and the next-nearest copy is used."""
        slot = self._agent.arena.slots.get(body.slot)
        if slot is None:
            raise NotFoundError(f"slot {body.slot}", hint="it was freed already")
        error = LoadError(f"{body.id} in memory: {body.reason}", step=body.id.step).to_dict()
        self._readers.drop(body.slot)
        self._agent.executor.tell_node(events.FoundBad(body.slot, error))
        return messages.Ok()
