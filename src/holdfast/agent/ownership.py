"""Whose run it is: claiming attempts, finding again what an earlier agent owned, being superseded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from holdfast.agent.arena import Arena
from holdfast.agent.contents import standing
from holdfast.agent.executor import Executor
from holdfast.agent.host import Host
from holdfast.agent.shelf import Shelf
from holdfast.errors import HoldfastError, NotFoundError, SupersededError
from holdfast.lifecycle import events
from holdfast.model.identity import CheckpointId
from holdfast.store.catalog import Catalog
from holdfast.wire import messages
from holdfast.wire.pages import RunPage
from holdfast.wire.spawn import coordinator_at

log = logging.getLogger("holdfast.agent")

T = TypeVar("T")

_LONGEST_WAIT_S = 30.0


class Ownership:
    """Invariants: the run page's attempt is the one this arena claimed last; `superseded_by` is set while a higher one
    exists elsewhere.

    Threads: the agent's event loop; tiers are looked at in the shelf's pool, and worked on in threads of their own.
    """

    def __init__(self, host: Host, executor: Executor, arena: Arena, shelf: Shelf, run_page: RunPage) -> None:
        self._host = host
        self._executor = executor
        self._arena = arena
        self._shelf = shelf
        self._run_page = run_page

    @property
    def coordinator(self) -> str:
        """Where another launch can ask whether this one lives."""
        return coordinator_at(self._arena.root)

    async def find_again(self) -> None:
        """What the run page says we own, if no later attempt was claimed elsewhere.

        A tier that cannot be read now is asked again in the background: until then nothing is committed or pruned.
        """
        if self._run_page.attempt and not await self._found():
            self._host.later(self._find_later())

    async def _found(self) -> bool:
        own = self._run_page.attempt
        try:
            lineage, highest = await self._host.in_thread(self._shelf.claiming.lineage)
            if highest > own:
                highest = await self._host.in_thread(self._shelf.claiming.successor)
            if highest == own:
                await self._host.in_thread(self._shelf.claiming.own_again, own)
        except HoldfastError as e:
            self._host.reported(e.to_dict())
            return False
        if self._run_page.attempt != own or self._shelf.claiming.owner > own:
            return True  # a launch claimed the next one meanwhile
        if highest < own:
            self._host.reported(
                NotFoundError(f"the claim of attempt {own}, which this arena made, is not there").to_dict()
            )
            return False
        if highest > own:
            self._superseded(highest)
            return True
        self._executor.tell_run(events.AttemptOwned(own, lineage))
        self._host.later(self._catch_up())
        return True

    async def _find_later(self) -> None:
        wait_s = 1.0
        own = self._run_page.attempt
        while self._run_page.attempt == own:
            await asyncio.sleep(wait_s)
            if self._run_page.attempt != own or await self._found():
                return
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    async def claim(self, body: messages.ClaimAttempt) -> messages.AttemptAnswer:
        """Claim the next attempt on the home tier, standing on `parent`.

        Raises: RunBusyError while another arena of this machine coordinates the run; TierError.
        """
        await self._host.in_thread(self._shelf.claiming.refuse_other_owner, self.coordinator)
        seen = max((s.page.attempt for s in self._arena.slots.values()), default=0)
        claimed = await self._host.in_thread(self._shelf.claiming.claim, body.parent, self.coordinator, seen)
        self._run_page.attempt = claimed.attempt
        self._run_page.superseded_by = 0
        log.info("attempt %d, standing on %s", claimed.attempt, body.parent)
        self._executor.tell_run(events.AttemptOwned(claimed.attempt, claimed.lineage))
        self._host.attempt_claimed()
        self._host.later(self._catch_up())
        return messages.AttemptAnswer(claimed.attempt, claimed.left)

    async def _catch_up(self) -> None:
        """In the background, once we own an attempt: commit what was flushed whole and never committed, tell the run
        machine what stands where, remove what dead agents left.

        Each tier by itself, and the machine is told of all in bounded time, whichever of them hangs or fails.
        """
        names = [r.name for r in self._host.settings.beyond_memory]
        rolling = [self._chore(name, self._shelf.keeping.roll_forward, name) for name in names]
        await asyncio.wait(rolling, timeout=self._shelf.tiers.start_look_s)
        late = [not r.done() for r in rolling]
        await self.read_catalogs()
        for name, rolled, is_late in zip(names, rolling, late, strict=True):
            self._host.later(self._tend(name, rolled, is_late=is_late))

    async def _tend(self, tier: str, rolled: asyncio.Future[list[CheckpointId]], *, is_late: bool) -> None:
        """The rest of catching up on one tier, for as long as that takes there."""
        try:
            for checkpoint in await rolled:
                log.info("rolled %s forward on %s", checkpoint, tier)
        except HoldfastError as e:
            self._failed(e)
        try:
            await self._chore(tier, self._shelf.tiers.sweep_uploads, tier)
            found = await self._chore(tier, self._shelf.tiers.catalog, tier)
            if is_late:
                self._executor.tell_run(events.CatalogRead(tier, *standing(found)))
            await self._tidy(tier, found)
        except HoldfastError as e:
            self._failed(e)

    async def _tidy(self, tier: str, found: Catalog) -> None:
        """Not before every node has told what it holds: a step of which one still flushes its part is in flight."""
        # What is in flight is asked now, after the listing, which may have taken long.
        run = self._executor.run
        if run.told:
            in_flight = {s.checkpoint for s in run.steps()} | {i.checkpoint for i in run.shared()}
            await self._chore(tier, self._shelf.keeping.tidy, tier, found, in_flight)

    def _chore(self, tier: str, work: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Run in the tier's own thread: where it hangs, nothing else waits."""
        return asyncio.get_running_loop().run_in_executor(self._shelf.tiers.chores(tier), work, *args)

    def _failed(self, error: HoldfastError) -> None:
        self.maybe_superseded(error)
        self._host.reported(error.to_dict())

    async def read_catalogs(self) -> None:
        """List every tier; one that cannot be listed is reported, and listed again after the next claim."""
        await asyncio.gather(*(self._read_catalog(r.name) for r in self._host.settings.beyond_memory))

    async def _read_catalog(self, tier: str) -> None:
        try:
            committed, tombstoned, notes = await self._host.in_thread(self._shelf.contents.catalog, tier)
            self._executor.tell_run(events.CatalogRead(tier, committed, tombstoned, notes))
        except HoldfastError as e:
            self._executor.tell_run(events.CatalogFailed(tier, e.to_dict()))

    def maybe_superseded(self, error: HoldfastError) -> None:
        """A commit or a deletion failed; if somebody else owns the run, say so on the run page."""
        if isinstance(error, SupersededError):
            self._host.later(self._look_for_successor())

    async def _look_for_successor(self) -> None:
        highest = await self._host.in_thread(self._shelf.claiming.successor)
        if highest > self._run_page.attempt:
            self._superseded(highest)

    def _superseded(self, highest: int) -> None:
        self._run_page.superseded_by = highest
        self._executor.tell_run(events.SupersededBy(highest))
