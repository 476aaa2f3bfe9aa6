"""Letting trainers in: launches, their settings, and the slots dealt to their ranks."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import msgspec

from holdfast.agent.arena import Slot
from holdfast.config import Settings
from holdfast.errors import AgentError, CapacityError, ConfigError, HoldfastError
from holdfast.lifecycle import events
from holdfast.units import format_bytes
from holdfast.wire import messages
from holdfast.wire.pages import SlotState
from holdfast.wire.spawn import write_config

if TYPE_CHECKING:
    from holdfast.agent.agent import Agent

_BUSY_POLL_S = 0.05
_SHARED_SLOTS = 2
"""For what a rank's steps share: one that steps in memory rely on, and one to fill when it has changed."""


class Admission:
    """Invariants: a slot is dealt only when its room is promised and faulted; one launch at a time.

    Threads: the agent's event loop; faulting in the shelf's pool.
    """

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._one_at_a_time = asyncio.Lock()
        self._readying: dict[int, asyncio.Task[None]] = {}

    async def launch(self, body: messages.Launch) -> messages.LaunchAnswer:
        """Admit one rank of a launch, waiting a moment for processes of the launch before.

        Raises: RunBusyError; AgentError while it ends; ConfigError when trainer and agent speak different protocols.
        """
        agent = self._agent
        if body.protocol != messages.PROTOCOL:
            raise ConfigError(
                f"trainer speaks protocol {body.protocol}, this agent {messages.PROTOCOL}",
                hint="two versions of holdfast on one node: end the old agent with `holdfast agent URL --stop`",
            )
        loop = asyncio.get_running_loop()
        deadline = loop.time() + agent.settings.busy_wait_s
        while agent.launches.blockers(body.launch) and loop.time() < deadline:
            await asyncio.sleep(_BUSY_POLL_S)
        async with self._one_at_a_time:
            if agent.ending:
                raise AgentError("this agent is ending", hint="the next call starts a new one")
            if agent.launches.begin(body):
                self._begin(body)
            agent.choose_cores()
        return messages.LaunchAnswer(agent.launches.trainers[body.rank].file.path.name, "run.page", os.getpid())

    def _begin(self, body: messages.Launch) -> None:
        agent = self._agent
        agent.closing.reset()
        agent.poller.forget()
        agent.stopping.reset()
        agent.timed.reset()
        agent.failing.reset()
        agent.loading.forget()
        self._reconfigure(msgspec.convert(body.settings, Settings))
        self.undeal()
        agent.trainers_here = True
        agent.executor.tell_run(events.TrainersBack())

    def _reconfigure(self, settings: Settings) -> None:
        agent = self._agent
        if settings == agent.settings:
            return
        if settings.home != agent.settings.home or settings.run != agent.settings.run:
            raise ConfigError("a launch of another run reached this agent", hint="this is a defect; please report it")
        if settings.tiers != agent.settings.tiers:
            agent.shelf.tiers.reconfigure(settings)
        told = events.Reconfigured(settings.tiers, settings.slot_wait_s, settings.idle_s)
        agent.executor.tell_run(told)
        agent.executor.tell_node(told)
        agent.settings = settings
        agent.arena.budget_bytes = settings.arena_budget_bytes
        write_config(agent.root, settings)

    def undeal(self) -> None:
        """A launch begins: slots are nobody's until its ranks prepare, held ones too.

        Not before: a rank whose slots are all held would seem to lack room, and older memory would yield to nobody.
        """
        for slot in self._agent.arena.slots.values():
            if slot.page.dealt_rank >= 0:
                self._undeal(slot)

    def _undeal(self, slot: Slot) -> None:
        slot.page.dealt_rank = -1
        self._agent.executor.tell_node(events.Undealt(slot.number))

    async def prepare(self, body: messages.Prepare) -> messages.PrepareAnswer:
        """Deal slots; new ones are dealt as soon as their room is promised and faulted.

        Raises: CapacityError with the sum; nothing is dealt then.
        """
        self._agent.choose_cores()  # again: a trainer may have bound itself since it attached
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
        agent, sizes = self._agent, (body.image_bytes, body.shared_bytes)
        own = [s for s in agent.arena.find(SlotState.FREE) if s.page.dealt_rank == body.rank]
        outgrown = [s for s in own if not 0 < sizes[min(s.for_image, 1)] <= s.capacity_bytes]
        for slot in outgrown:
            self._undeal(slot)
        slots: list[Slot] = []
        try:
            slots = agent.arena.deal(body.rank, agent.settings.slots_per_rank, body.image_bytes)
            count = _SHARED_SLOTS if body.shared_bytes else 0
            return slots, agent.arena.deal(body.rank, count, body.shared_bytes, image=1, besides=slots)
        except CapacityError as e:
            if slots:
                e.message += f", besides {len(slots)} x {format_bytes(body.image_bytes)}"
            for slot in slots:
                if not slot.ready and slot.number not in self._readying:
                    agent.arena.remove(slot)
            for slot in outgrown:
                if slot.number in agent.arena.slots:
                    self._deal(slot, body.rank, slot.page.dealt_image)
            raise

    def _take_back(self, rank: int, keep: set[int]) -> None:
        """What the rank outgrew is no room of its any more, whether it is free, in use or still being readied.

        Else a free slot that is too small would look like room for the rank's next save, and nothing would yield to it.
        """
        for slot in self._agent.arena.slots.values():
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
        self._agent.executor.tell_node(events.Dealt(slot.number, rank, image))

    async def _make_ready(self, slot: Slot, rank: int) -> None:
        agent = self._agent
        try:
            await asyncio.get_running_loop().run_in_executor(agent.shelf.faulting, agent.arena.make_ready, slot)
            if slot.reserved_for == rank:
                self._deal(slot, rank, slot.reserved_image)
        except HoldfastError as e:
            agent.reported(e.to_dict())
            agent.arena.remove(slot)
        finally:
            self._readying.pop(slot.number, None)

    async def finish(self) -> None:
        """Wait for what is being faulted: a thread writes to it."""
        if self._readying:
            await asyncio.wait(self._readying.values())
