"""Letting trainers in: launches and their settings."""

from __future__ import annotations

import asyncio

import msgspec

from holdfast.agent.arena import Arena
from holdfast.agent.dealing import Dealing
from holdfast.agent.executor import Executor
from holdfast.agent.host import Host
from holdfast.agent.launches import Launches
from holdfast.agent.open_tiers import OpenTiers
from holdfast.config import Settings
from holdfast.errors import AgentError, ConfigError
from holdfast.lifecycle import events
from holdfast.wire import messages
from holdfast.wire.spawn import write_config

_BUSY_POLL_S = 0.05


class Admission:
    """Invariant: one launch at a time; one whose settings cannot be used leaves nothing behind.

    Threads: the agent's event loop.
    """

    def __init__(
        self, host: Host, executor: Executor, arena: Arena, tiers: OpenTiers, launches: Launches, dealing: Dealing
    ) -> None:
        self._host = host
        self._executor = executor
        self._arena = arena
        self._tiers = tiers
        self._launches = launches
        self._dealing = dealing
        self._one_at_a_time = asyncio.Lock()

    async def launch(self, body: messages.Launch) -> messages.LaunchAnswer:
        """Admit one rank of a launch, waiting a moment for processes of the launch before.

        Raises: RunBusyError; AgentError while it ends; ConfigError when trainer and agent speak different protocols, or
            when the settings cannot be used; TierError.
        """
        if body.protocol != messages.PROTOCOL:
            raise ConfigError(
                f"trainer speaks protocol {body.protocol}, this agent {messages.PROTOCOL}",
                hint="two versions of holdfast on one node: end the old agent with `holdfast agent URL --stop`",
            )
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._host.settings.busy_wait_s
        while self._launches.blockers(body.launch) and loop.time() < deadline:
            await asyncio.sleep(_BUSY_POLL_S)
        async with self._one_at_a_time:
            self._check_stays()
            if self._launches.begin(body):
                try:
                    await self._begin(body)
                except BaseException:
                    # It would be in the way of the next, and its other ranks would be let in with settings of the last.
                    self._launches.forget()
                    raise
            self._host.choose_cores()
        return messages.LaunchAnswer(self._launches.trainers[body.rank].file.path.name, "run.page")

    def _check_stays(self) -> None:
        if self._host.ending:
            raise AgentError("this agent is ending", hint="the next call starts a new one")

    async def _begin(self, body: messages.Launch) -> None:
        await self._reconfigure(msgspec.convert(body.settings, Settings))
        self._host.launch_begins()
        self._dealing.undeal(body.world_size)
        self._host.trainers_here = True
        self._executor.tell_run(events.TrainersBack())

    async def _reconfigure(self, settings: Settings) -> None:
        if settings.home != self._host.settings.home or settings.run != self._host.settings.run:
            raise ConfigError("a launch of another run reached this agent", hint="this is a defect; please report it")
        # Also where nothing was set anew: a tier may have another directory now. In a thread, for it may hang; what
        # follows is done at once, so that no flush goes where the machines do not know of.
        opening = self._tiers.opening
        opened = await asyncio.get_running_loop().run_in_executor(opening, self._tiers.open_for, settings)
        self._check_stays()
        self._tiers.reconfigure(settings, opened)
        if settings == self._host.settings:
            return
        told = events.Reconfigured(settings.tiers, settings.slot_wait_s, settings.idle_s)
        self._executor.tell_run(told)
        self._executor.tell_node(told)
        self._host.settings = settings
        self._arena.budget_bytes = settings.arena_budget_bytes
        write_config(self._arena.root, settings)
