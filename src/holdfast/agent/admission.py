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
from holdfast.wire import messages
from holdfast.wire.pages import SlotState
from holdfast.wire.spawn import write_config

if TYPE_CHECKING:
    from holdfast.agent.agent import Agent

_BUSY_POLL_S = 0.05


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
            agent.shelf.reconfigure(settings)
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
        slots = self._find_slots(body)
        self._take_back(body.rank, keep={s.number for s in slots})
        # Free ones first, for the reason above.
        for slot in sorted(slots, key=lambda s: s.page.state != SlotState.FREE):
            if slot.ready:
                self._deal(slot, body.rank)
            elif slot.number not in self._readying:
                self._readying[slot.number] = asyncio.create_task(self._make_ready(slot, body.rank))
        return messages.PrepareAnswer([s.number for s in slots])

    def _find_slots(self, body: messages.Prepare) -> list[Slot]:
        """The rank's slots from now on. The free ones it outgrew make room for them, if need be.

        Raises: CapacityError; the rank has what it had then.
        """
        agent = self._agent
        own = [s for s in agent.arena.find(SlotState.FREE) if s.page.dealt_rank == body.rank]
        outgrown = [s for s in own if s.capacity_bytes < body.image_bytes]
        for slot in outgrown:
            self._undeal(slot)
        try:
            return agent.arena.deal(body.rank, agent.settings.slots_per_rank, body.image_bytes)
        except CapacityError:
            for slot in outgrown:
                if slot.number in agent.arena.slots:
                    self._deal(slot, body.rank)
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

    def _deal(self, slot: Slot, rank: int) -> None:
        slot.page.dealt_rank = rank
        slot.reserved_for = -1
        self._agent.executor.tell_node(events.Dealt(slot.number, rank))

    async def _make_ready(self, slot: Slot, rank: int) -> None:
        agent = self._agent
        try:
            await asyncio.get_running_loop().run_in_executor(agent.shelf.faulting, agent.arena.make_ready, slot)
            if slot.reserved_for == rank:
                self._deal(slot, rank)
        except HoldfastError as e:
            agent.reported(e.to_dict())
            agent.arena.remove(slot)
        finally:
            self._readying.pop(slot.number, None)

    async def finish(self) -> None:
        """Wait for what is being faulted: a thread writes to it."""
        if self._readying:
            await asyncio.wait(self._readying.values())
