"""The agent of one run on one node: composes arena, launches, machines and executor, and answers the API."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from holdfast.agent.admission import Admission
from holdfast.agent.answers import Answers
from holdfast.agent.arena import Arena
from holdfast.agent.closing import Closing
from holdfast.agent.cores import Cores
from holdfast.agent.dealing import Dealing
from holdfast.agent.executor import Executor
from holdfast.agent.failing import Failing
from holdfast.agent.launches import Launches
from holdfast.agent.loading import Loading
from holdfast.agent.looking import Looking
from holdfast.agent.ownership import Ownership
from holdfast.agent.poller import Poller, adopted_event
from holdfast.agent.repairing import Repairing
from holdfast.agent.reports import Reports
from holdfast.agent.shelf import Shelf
from holdfast.agent.stopping import Proposals
from holdfast.agent.timed import TimedSaves
from holdfast.agent.view import AgentView
from holdfast.config import Settings
from holdfast.errors import HoldfastError
from holdfast.lifecycle import events
from holdfast.lifecycle.node import NodeMachine
from holdfast.lifecycle.run import RunMachine
from holdfast.model.identity import CheckpointId
from holdfast.policy.schedule import due_mask
from holdfast.wire import messages
from holdfast.wire.mapped import MappedFile
from holdfast.wire.pages import PAGE_BYTES, RunPage, SlotState

log = logging.getLogger("holdfast.agent")

T = TypeVar("T")
NODE = "node0"
_POLL_S = 0.012
_IDLE_POLL_S = 0.1
"""With no trainer alive pages change by nobody's hand but ours."""
_WATCH_EVERY = 4
"""Look whether trainers live every so many polls: it reads /proc."""
_REPORT = "this is a defect; see agent.log"


class Agent:
    """Invariants: one per arena directory (main.py holds the lock).

    Threads: everything on the event loop; work on bytes and tiers in the shelf's and the executor's pools.
    """

    def __init__(self, root: Path, settings: Settings) -> None:
        self.root = root
        self.settings = settings
        self._done = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._opened = contextlib.AsyncExitStack()
        """What `finish` lets go of, last opened first: so much of it as `start` came to."""
        self._started = False
        self.trainers_here = False
        self._cores = Cores()

    # -- life ---------------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Map what an earlier agent left, build the machines, look at the tiers. `finish` is due even if it fails.

        Raises: ConfigError, TierError when a tier cannot be opened.
        """
        settings = self.settings
        self.arena = Arena(self.root, settings.arena_budget_bytes)
        self._opened.callback(self._let_go_of_arena)
        self.shelf = Shelf(settings, self.root)
        self._opened.callback(self.shelf.close)
        self._open_run_page()
        self.reports = Reports(self.run_page)
        self.shelf.claiming.claims.own = self.run_page.attempt
        self._opened.callback(self._close_run_page)
        self.launches = Launches(self.root)
        self._opened.callback(self.launches.close)
        self.executor = Executor(
            arena=self.arena,
            shelf=self.shelf,
            node=NodeMachine(NODE, settings.tiers, slot_wait_s=settings.slot_wait_s),
            run=RunMachine(settings.tiers, idle_s=settings.idle_s),
            listener=self,
        )
        self._opened.push_async_callback(self.executor.finish)
        self.stopping = Proposals(self.run_page)
        self.failing = Failing(self.stopping)
        self.timed = TimedSaves(self.run_page, time.monotonic)
        self.poller = Poller(self.arena, self.launches, self._seen_on_pages)
        self.dealing = Dealing(self, self.executor, self.arena, self.shelf.faulting)
        self._opened.push_async_callback(self.dealing.finish)
        self.admission = Admission(self, self.executor, self.arena, self.shelf.tiers, self.launches, self.dealing)
        self.ownership = Ownership(self, self.executor, self.arena, self.shelf, self.run_page)
        self.repairing = Repairing(self, self.executor, self.arena, self.shelf, self.ownership.read_catalogs)
        self.loading = Loading(self, self.executor, self.arena, self.shelf, self.repairing)
        self.closing = Closing(self, self.executor, self.launches, self.poller)
        self.answers = Answers(self, self.executor, self.arena, self.shelf.contents)
        self.looking = Looking(self, self.executor, self.arena, self.shelf, self.launches, self.run_page)
        self.launches.adopt()
        self.choose_cores()
        await self.ownership.find_again()
        self._adopt_slots()
        # What is staged, too, is told before anything is concluded from an image that is not there.
        self.poller.poll(settings.tiers)
        await self.ownership.read_catalogs()
        self.trainers_here = self.launches.anyone_alive
        self._started = True
        if not self.trainers_here:
            self.executor.tell_run(events.TrainersGone())

    def _open_run_page(self) -> None:
        self._run_file = MappedFile(self.root / "run.page", PAGE_BYTES)
        self.run_page = RunPage(self._run_file.buffer)
        if not self.run_page.valid:
            self.run_page.initialise()
            self.run_page.proposal_step = -1

    def _adopt_slots(self) -> None:
        """Hand every slot an earlier agent left to the node machine; it has held ones verified."""
        # What steps share goes first: they rely on it.
        for slot in sorted(self.arena.adopt(), key=lambda s: s.page.image == 0):
            page = slot.page
            if page.dealt_rank >= 0:
                self.executor.tell_node(events.Dealt(slot.number, page.dealt_rank, page.dealt_image))
            if page.state == SlotState.HELD:
                self.executor.tell_node(adopted_event(slot, self.settings.tiers))

    async def run(self) -> None:
        """Poll the pages until the run needs this agent no more."""
        polls = 0
        while not self._done.is_set():
            polls += 1
            self.poller.poll(self.settings.tiers)
            self.looking.glance()
            pages = [t.page for t in self.launches.trainers.values()]
            self.stopping.poll(pages, complete=self.launches.complete)
            self.timed.poll(pages, self.settings.tiers, complete=self.launches.complete)
            if polls % _WATCH_EVERY == 0:
                self._watch_trainers()
            await asyncio.sleep(_POLL_S if self.trainers_here else _IDLE_POLL_S)

    def _seen_on_pages(self, event: events.NodeEvent) -> None:
        if isinstance(event, events.Staged):
            # What it is due on by time alone counts once all ranks have passed it.
            self.timed.saved(event.due - event.timed)
        self.executor.tell_node(event)

    def _watch_trainers(self) -> None:
        here = self.launches.anyone_alive
        if self.trainers_here and not here and not self.closing.ended_well:
            log.info("every trainer is gone")
            # What they staged last may not have been told yet.
            self.poller.poll(self.settings.tiers)
            for rank in list(self.launches.trainers):
                self.loading.unpin(rank)
            self.executor.tell_run(events.TrainersGone())
        self.trainers_here = here

    def launch_begins(self) -> None:
        """Forget what was agreed and promised with the launch before."""
        self.closing.reset()
        self.poller.forget()
        self.stopping.reset()
        self.timed.reset()
        self.failing.reset()
        self.loading.forget()

    def choose_cores(self) -> None:
        """Go where the setting says, as seen from the trainers that are attached now."""
        pids = [t.page.pid for t in self.launches.trainers.values() if t.alive]
        self._cores.choose(self.settings.agent_cores, pids)

    def terminate(self) -> None:
        """SIGTERM: promote within the grace, then end."""
        self.shelf.tiers.lift_limits()
        self.poller.poll(self.settings.tiers)
        self.executor.tell_run(events.TermSignal(self.settings.grace_s))

    @property
    def ending(self) -> bool:
        return self._done.is_set()

    def leave(self) -> None:
        """End `run`."""
        self._done.set()

    async def finish(self) -> None:
        """Let go of everything; free the memory if the run ended well, else leave it for the next agent."""
        for task in self._tasks:
            task.cancel()
        await self._opened.aclose()

    def _close_run_page(self) -> None:
        self.run_page.release()
        self._run_file.close()

    def _let_go_of_arena(self) -> None:
        if self._started and self.closing.free_memory:
            self.arena.destroy()
        else:
            self.arena.close()

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Run on the side; `finish` cancels what is left."""
        task = asyncio.get_running_loop().create_task(self._told(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Cancelled before it began, it would never be awaited, and Python says so.
        task.add_done_callback(lambda _: work.close())

    async def _told(self, work: Coroutine[Any, Any, None]) -> None:
        """Nothing fails unseen, also on the side."""
        try:
            await work
        except HoldfastError as e:
            self.reported(e.to_dict())
        except Exception as e:
            log.exception("a defect")
            self.reported(HoldfastError(f"a defect in the agent: {type(e).__name__}: {e}", hint=_REPORT).to_dict())

    async def in_thread(self, work: Callable[..., T], *args: Any) -> T:
        """Run what blocks in the shelf's pool."""
        return await asyncio.get_running_loop().run_in_executor(self.shelf.pool, work, *args)

    # -- what the executor tells --------------------------------------------------------------------------------------
    def step_changed(self, checkpoint: CheckpointId) -> None:
        """Wake whoever waits for a handle; count what failed."""
        self.later(self.answers.wake())
        status = self.executor.run.status(checkpoint)
        if status is not None:
            self.failing.look(status, self.settings.saves_to_fail)

    def reported(self, error: events.Error) -> None:
        """Keep an error for status and for the trainers' next save."""
        self.reports.add(error)

    def ended(self, reason: str, error: events.Error | None, *, free: bool) -> None:
        """The run machine needs this agent no more."""
        self.closing.ended(reason, error, free=free)

    def attempt_claimed(self) -> None:
        """What the launch had loaded is on the lineage now."""
        self.loading.claimed()

    def mask_of(self, tier: str) -> int:
        """The tier's bit on pages."""
        return due_mask([tier], self.settings.tiers)

    def maybe_superseded(self, error: HoldfastError) -> None:
        """A commit or a deletion failed; perhaps somebody else owns the run."""
        self.ownership.maybe_superseded(error)

    # -- answers ------------------------------------------------------------------------------------------------------
    def view(self) -> AgentView:
        """Everything, for status, metrics and page."""
        return self.looking.view(self.reports.kept())

    async def prune(self, body: messages.Prune) -> messages.Ok:
        """A person wants checkpoints gone, memory included; the run machine deletes them tier by tier."""
        self.executor.tell_run(events.PruneAsked(frozenset(body.checkpoints)))
        return messages.Ok()

    def errors_since(self, number: int) -> messages.ErrorList:
        """Errors behind the training loop that came after `number`."""
        return self.reports.since(number, self.failing.fatal)
