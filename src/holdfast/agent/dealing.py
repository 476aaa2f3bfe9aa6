"""Deals slots of the arena to ranks."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor as Pool

from holdfast.agent.arena import Arena, Slot
from holdfast.agent.executor import Executor
from holdfast.agent.host import Host
from holdfast.errors import CapacityError, HoldfastError
from holdfast.lifecycle import events
from holdfast.units import format_bytes
from holdfast.wire import messages
from holdfast.wire.pages import SlotState

_SHARED_SLOTS = 2
"""For what a rank's steps share: one that steps in memory rely on, and one to fill when it has changed."""


class Dealing:
    """Invariant: a slot is dealt only when its room is promised and faulted.

    Threads: the agent's event loop; faulting in a pool.
    """

    def __init__(self, host: Host, executor: Executor, arena: Arena, faulting: Pool) -> None:
        self._host = host
        self._executor = executor
        self._arena = arena
        self._faulting = faulting
        self._readying: dict[int, asyncio.Task[None]] = {}

    def undeal(self, world_size: int) -> None:
        """A launch of so many ranks begins: slots are nobody's until its ranks prepare, held ones too.

        Not before: a rank whose slots are all held would seem to lack room, and older memory would yield to nobody.
        What is still being faulted stays with its rank, unless the launch has no such rank, which would never let go.
        """
        for slot in self._arena.slots.values():
            if slot.page.dealt_rank >= 0:
                self._undeal(slot)
            if slot.reserved_for >= world_size:
                slot.reserved_for = -1

    def _undeal(self, slot: Slot) -> None:
        slot.page.dealt_rank = -1
        self._executor.tell_node(events.Undealt(slot.number))

    async def prepare(self, body: messages.Prepare) -> messages.PrepareAnswer:
        """Deal slots; new ones are dealt as soon as their room is promised and faulted.

        Raises: CapacityError with the sum; nothing is dealt then.
        """
        self._host.choose_cores()  # again: a trainer may have bound itself since it attached
        slots, shared = self._find_slots(body)
        self._take_back(body.rank, keep={s.number for s in (*slots, *shared)})
        found = [(s, 0) for s in slots] + [(s, 1) for s in shared]
        # Free ones first, for the reason above.
        for slot, image in sorted(found, key=lambda x: x[0].page.state != SlotState.FREE):
            if slot.ready:
                self._deal(slot, body.rank, image)
            elif slot.number not in self._readying:
                self._readying[slot.number] = asyncio.create_task(self._make_ready(slot, body.rank))
        return messages.PrepareAnswer([s.number for s in slots], [s.number for s in shared])

    def _find_slots(self, body: messages.Prepare) -> tuple[list[Slot], list[Slot]]:
        """The rank's slots from now on, and those for what its steps share.

        The free ones it outgrew make room for them, if need be.

        Raises: CapacityError; the rank has what it had then.
        """
        sizes = (body.image_bytes, body.shared_bytes)
        own = [s for s in self._arena.find(SlotState.FREE) if s.page.dealt_rank == body.rank]
        outgrown = [s for s in own if not 0 < sizes[min(s.for_image, 1)] <= s.capacity_bytes]
        for slot in outgrown:
            self._undeal(slot)
        slots: list[Slot] = []
        try:
            slots = self._arena.deal(body.rank, self._host.settings.slots_per_rank, body.image_bytes)
            count = _SHARED_SLOTS if body.shared_bytes else 0
            return slots, self._arena.deal(body.rank, count, body.shared_bytes, image=1, besides=slots)
        except CapacityError as e:
            if slots:
                e.message += f", besides {len(slots)} x {format_bytes(body.image_bytes)}"
            for slot in slots:
                if not slot.ready and slot.number not in self._readying:
                    self._arena.remove(slot)
            for slot in outgrown:
                if slot.number in self._arena.slots:
                    self._deal(slot, body.rank, slot.page.dealt_image)
            raise

    def _take_back(self, rank: int, keep: set[int]) -> None:
        """What the rank outgrew is no room of its any more, whether it is free, in use or still being readied.

        Else a free slot that is too small would look like room for the rank's next save, and nothing would yield to it.
        """
        for slot in self._arena.slots.values():
            if slot.number in keep:
                continue
            if slot.page.dealt_rank == rank:
                self._undeal(slot)
            if slot.reserved_for == rank:
                slot.reserved_for = -1

    def _deal(self, slot: Slot, rank: int, image: int) -> None:
        slot.page.dealt_image = image
        slot.page.dealt_rank = rank
        slot.reserved_for = -1
        self._executor.tell_node(events.Dealt(slot.number, rank, image))

    async def _make_ready(self, slot: Slot, rank: int) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._faulting, self._arena.make_ready, slot)
            if slot.reserved_for == rank:
                self._deal(slot, rank, slot.reserved_image)
        except HoldfastError as e:
            self._host.reported(e.to_dict())
            self._arena.remove(slot)
        finally:
            self._readying.pop(slot.number, None)

    async def finish(self) -> None:
        """Wait for what is being faulted: a thread writes to it."""
        if self._readying:
            await asyncio.wait(self._readying.values())
