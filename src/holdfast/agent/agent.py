"""The agent of one run on one node: composes arena, launches, machines and executor, and answers the API."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec

from holdfast.agent.arena import Arena, Slot
from holdfast.agent.executor import Executor
from holdfast.agent.launches import Launches
from holdfast.agent.loading import Loading
from holdfast.agent.metrics import metrics_text
from holdfast.agent.poller import Poller, adopted_event
from holdfast.agent.shelf import Shelf
from holdfast.agent.status import save_status, status_of, step_infos
from holdfast.agent.stopping import StopProposals
from holdfast.config import Settings
from holdfast.errors import AgentError, ConfigError, HoldfastError, RunBusyError, SupersededError
from holdfast.lifecycle import events
from holdfast.lifecycle.node import NodeMachine
from holdfast.lifecycle.run import RunMachine
from holdfast.model.identity import CheckpointId
from holdfast.wire import messages
from holdfast.wire.pages import PAGE_BYTES, MappedFile, RunPage, SlotState, process_start
from holdfast.wire.spawn import write_config

log = logging.getLogger("holdfast.agent")

NODE = "node0"
_POLL_S = 0.012
_BUSY_POLL_S = 0.05
_LINGER_S = 5.0
_ERRORS_KEPT = 100


class Agent:
    """Invariants: one per arena directory (main.py holds the lock).

    Threads: everything on the event loop; work on bytes and tiers in the executor's pools.
    """

    def __init__(self, root: Path, settings: Settings) -> None:
        self.root = root
        self.settings = settings
        self._done = asyncio.Event()
        self._changed = asyncio.Condition()
        self._end: tuple[str, events.Error | None] | None = None
        self._free_at_end = False
        self._errors: deque[tuple[int, events.Error]] = deque(maxlen=_ERRORS_KEPT)
        self._readying: dict[int, asyncio.Task[None]] = {}
        self._launching = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self.tiers: dict[str, dict[str, Any]] = {}

    # -- life ---------------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Map what an earlier agent left, build the machines, look at the tiers."""
        settings = self.settings
        self.arena = Arena(self.root, settings.arena_budget_bytes)
        self.shelf = Shelf(settings)
        self.executor = Executor(
            arena=self.arena,
            shelf=self.shelf,
            node=NodeMachine(NODE, settings.tiers, slot_wait_s=settings.slot_wait_s),
            run=RunMachine(settings.tiers, idle_s=settings.idle_s),
            listener=self,
        )
        self.launches = Launches(self.root)
        self._open_run_page()
        self.stopping = StopProposals(self.run_page)
        self.poller = Poller(self.arena, self.launches, self.executor.tell_node)
        self.loading = Loading(self)
        self.launches.adopt()
        await self._find_attempt()
        self._adopt_slots()
        await self.read_catalogs()
        if not self.launches.anyone_alive:
            self.executor.tell_run(events.TrainersGone())
        self._trainers_here = self.launches.anyone_alive

    def _open_run_page(self) -> None:
        path = self.root / "run.page"
        old = path.exists() and path.stat().st_size == PAGE_BYTES
        self._run_file = MappedFile(path, None if old else PAGE_BYTES)
        self.run_page = RunPage(self._run_file.buffer)
        if not self.run_page.valid:
            self.run_page.initialise()
            self.run_page.proposal_step = -1
        self.run_page.agent_pid, self.run_page.agent_start = os.getpid(), process_start(os.getpid())
        self.run_page.lagging_mask = 0

    def _adopt_slots(self) -> None:
        """Hand every slot an earlier agent left to the node machine."""
        for slot in self.arena.adopt():
            page = slot.page
            if page.dealt_rank >= 0:
                self.executor.tell_node(events.Dealt(slot.number, page.dealt_rank))
            if page.state == SlotState.HELD:
                self.executor.tell_node(adopted_event(slot, self.settings.tiers))

    async def _find_attempt(self) -> None:
        """What the run page says we own, if no later attempt was claimed elsewhere."""
        try:
            lineage, highest = await self.in_thread(self.shelf.lineage)
        except HoldfastError as e:
            self.reported(e.to_dict())
            return
        own = self.run_page.attempt
        if own and own == highest:
            self.shelf.owner = own
            self.executor.tell_run(events.AttemptOwned(own, lineage))
            self._later(self._catch_up())
        elif own:
            self._superseded(highest)

    async def read_catalogs(self) -> None:
        """List every tier, in threads; what cannot be listed is reported and tried again at the next launch."""
        for rule in self.settings.tiers:
            if rule.is_memory:
                continue
            try:
                committed, tombstoned = await self.in_thread(self.shelf.catalog, rule.name)
                self.executor.tell_run(events.CatalogRead(rule.name, committed, tombstoned))
            except HoldfastError as e:
                self.executor.tell_run(events.CatalogFailed(rule.name, e.to_dict()))

    async def run(self) -> None:
        """Poll the pages until the run needs this agent no more."""
        while not self._done.is_set():
            self.run_page.heartbeat += 1
            self.poller.poll(self.settings.tiers)
            self.stopping.poll([t.page for t in self.launches.trainers.values()], complete=self.launches.complete)
            self._watch_trainers()
            await asyncio.sleep(_POLL_S)

    def _watch_trainers(self) -> None:
        here = self.launches.anyone_alive
        if self._trainers_here and not here and not self.launches.all_closed:
            log.info("every trainer is gone")
            self._undeal_dead()
            self.executor.tell_run(events.TrainersGone())
        self._trainers_here = here

    def _undeal_dead(self) -> None:
        for slot in self.arena.slots.values():
            if slot.page.dealt_rank >= 0 and slot.page.state == SlotState.FREE:
                slot.page.dealt_rank = -1
                self.executor.tell_node(events.Undealt(slot.number))

    def terminate(self) -> None:
        """SIGTERM: promote within the grace, then end."""
        self.executor.tell_run(events.TermSignal(self.settings.grace_s))

    async def finish(self) -> None:
        """Let go of everything; free the memory if the run ended well, else leave it for the next agent."""
        for task in (*self._readying.values(), *self._tasks):
            task.cancel()
        await self.executor.finish()
        self.shelf.close()
        self.launches.close()
        self.run_page.release()
        self._run_file.close()
        if self._free_at_end:
            self.arena.destroy()
        else:
            self.arena.close()

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        """Run on the side; `finish` cancels what is left."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def in_thread(self, work: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.shelf.pool, work, *args)

    # -- what the executor tells ----------------------------------------------------------------------------------------
    def tier_marked(self, tier: str, lagging: bool, degraded: events.Error | None) -> None:
        self.tiers[tier] = {"lagging": lagging, "degraded": degraded}
        mask = self.mask_of(tier)
        self.run_page.lagging_mask = (
            self.run_page.lagging_mask | mask if lagging else self.run_page.lagging_mask & ~mask
        )

    def step_changed(self, checkpoint: CheckpointId) -> None:
        self._wake()

    def reported(self, error: events.Error) -> None:
        log.error("%s", error.get("message"))
        self.run_page.errors += 1
        self._errors.append((self.run_page.errors, error))

    def ended(self, reason: str, error: events.Error | None) -> None:
        log.info("end: %s%s", reason, f" ({error['message']})" if error else "")
        self._end = (reason, error)
        self._free_at_end = error is None
        self._wake()
        if reason == "terminated" or (error is None and reason != "closed"):
            self._done.set()
        elif error is None:
            # Every rank must hear the answer first: they let go of their attachment when they have.
            self._later(self._leave_when_detached())

    async def _leave_when_detached(self) -> None:
        for _ in range(round(_LINGER_S / _BUSY_POLL_S)):
            if not any(t.attached for t in self.launches.trainers.values()):
                break
            await asyncio.sleep(_BUSY_POLL_S)
        if self._end is not None and self._end[0] == "closed":
            self._done.set()

    def mask_of(self, tier: str) -> int:
        return sum(1 << r.index for r in self.settings.tiers if r.name == tier)

    def maybe_superseded(self, error: HoldfastError) -> None:
        if isinstance(error, SupersededError):
            self._later(self._look_for_successor())

    async def _look_for_successor(self) -> None:
        _, highest = await self.in_thread(self.shelf.lineage)
        self._superseded(highest)

    def _superseded(self, highest: int) -> None:
        self.run_page.superseded_by = highest
        self.executor.tell_run(events.SupersededBy(highest))

    def _wake(self) -> None:
        async def wake() -> None:
            async with self._changed:
                self._changed.notify_all()

        self._later(wake())

    # -- attaching ------------------------------------------------------------------------------------------------------
    async def launch(self, body: messages.Launch) -> messages.LaunchAnswer:
        """Admit one rank of a launch, waiting a moment for processes of the launch before."""
        if body.protocol != messages.PROTOCOL:
            raise AgentError(
                f"trainer speaks protocol {body.protocol}, this agent {messages.PROTOCOL}",
                hint="two versions of holdfast on one node: end the old agent with `holdfast agent URL --stop`",
            )
        deadline = asyncio.get_running_loop().time() + self.settings.busy_wait_s
        while self.launches.blockers(body.launch) and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(_BUSY_POLL_S)
        async with self._launching:
            if self._done.is_set():
                raise AgentError("this agent is ending", hint="the next call starts a new one")
            if self.launches.begin(body):
                await self._begin_launch(body)
        return messages.LaunchAnswer(self.launches.trainers[body.rank].file.path.name, "run.page", os.getpid())

    async def _begin_launch(self, body: messages.Launch) -> None:
        self._end = None
        self.poller.forget()
        self.stopping.reset()
        self._reconfigure(msgspec.convert(body.settings, Settings))
        for slot in self.arena.slots.values():
            if slot.page.dealt_rank >= 0 and slot.page.state == SlotState.FREE:
                slot.page.dealt_rank = -1
                self.executor.tell_node(events.Undealt(slot.number))
        self.executor.tell_run(events.TrainersBack())

    def _reconfigure(self, settings: Settings) -> None:
        if settings == self.settings:
            return
        if settings.home != self.settings.home or settings.run != self.settings.run:
            raise ConfigError("a launch of another run reached this agent", hint="this is a defect")
        if settings.tiers != self.settings.tiers:
            self.shelf.reconfigure(settings)
            for event in (events.Reconfigured(settings.tiers),):
                self.executor.tell_run(event)
                self.executor.tell_node(event)
        self.settings = settings
        self.arena.budget_bytes = settings.arena_budget_bytes
        write_config(self.root, settings)

    def attached(self, rank: int) -> None:
        if rank in self.launches.trainers:
            self.launches.trainers[rank].attached = True

    def detached(self, rank: int) -> None:
        if rank in self.launches.trainers:
            self.launches.trainers[rank].attached = False

    # -- slots ----------------------------------------------------------------------------------------------------------
    async def prepare(self, body: messages.Prepare) -> messages.PrepareAnswer:
        """Deal slots; new ones are dealt as soon as their room is promised and faulted."""
        slots = self.arena.deal(body.rank, self.settings.slots_per_rank, body.image_bytes)
        keep = {s.number for s in slots}
        for slot in list(self.arena.slots.values()):
            if slot.page.dealt_rank == body.rank and slot.number not in keep and slot.page.state == SlotState.FREE:
                # Outgrown: too small for this rank's images now.
                slot.page.dealt_rank = -1
                self.executor.tell_node(events.Undealt(slot.number))
        for slot in slots:
            if slot.ready:
                self._deal(slot, body.rank)
            elif slot.number not in self._readying:
                self._readying[slot.number] = asyncio.create_task(self._make_ready(slot, body.rank))
        return messages.PrepareAnswer([s.number for s in slots])

    def _deal(self, slot: Slot, rank: int) -> None:
        slot.page.dealt_rank = rank
        self.executor.tell_node(events.Dealt(slot.number, rank))

    async def _make_ready(self, slot: Slot, rank: int) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self.shelf.faulting, self.arena.make_ready, slot)
            self._deal(slot, rank)
        except HoldfastError as e:
            self.reported(e.to_dict())
            self.arena.remove(slot)
        finally:
            self._readying.pop(slot.number, None)

    # -- the run --------------------------------------------------------------------------------------------------------
    async def claim_attempt(self, body: messages.ClaimAttempt) -> messages.AttemptAnswer:
        """Claim the next attempt on the home tier, standing on `parent`."""
        await self.in_thread(self.shelf.refuse_other_owner, self.coordinator)
        seen = max((s.page.attempt for s in self.arena.slots.values()), default=0)
        attempt, lineage = await self.in_thread(self.shelf.claim, body.parent, self.coordinator, seen)
        self.run_page.attempt = attempt
        self.run_page.superseded_by = 0
        log.info("attempt %d, standing on %s", attempt, body.parent)
        self.executor.tell_run(events.AttemptOwned(attempt, lineage))
        self._later(self._catch_up())
        return messages.AttemptAnswer(attempt)

    @property
    def coordinator(self) -> str:
        """Where another launch can ask whether this one lives: boot id and socket of this node."""
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}:{self.root / 'agent.sock'}"

    async def _catch_up(self) -> None:
        """In the background, once we own an attempt: commit what was flushed whole and never committed, remove what dead
        agents left, and tell the run machine what stands where."""
        try:
            for tier, checkpoint in await self.in_thread(self.shelf.roll_forward):
                log.info("rolled %s forward on %s", checkpoint, tier)
            await self.in_thread(self.shelf.tidy)
        except HoldfastError as e:
            self.maybe_superseded(e)
            self.reported(e.to_dict())
        await self.read_catalogs()

    async def loadable(self, *, step: int | None, below: CheckpointId | None) -> messages.Loadable:
        return await self.loading.loadable(step=step, below=below)

    async def fetch(self, body: messages.Fetch) -> messages.FetchAnswer:
        return await self.loading.fetch(body)

    async def unpin(self, body: messages.Unpin) -> messages.Ok:
        self.loading.unpin(body.rank)
        return messages.Ok()

    async def bad_image(self, body: messages.BadImage) -> messages.Ok:
        await self.loading.bad_image(body)
        return messages.Ok()

    async def save_status(self, checkpoint: CheckpointId, *, targets: list[str], wait_s: float) -> messages.SaveStatus:
        """What became of a step; waits until a target is settled, or `wait_s`."""
        deadline = asyncio.get_running_loop().time() + wait_s
        while True:
            status = await save_status(self, checkpoint)
            left_s = deadline - asyncio.get_running_loop().time()
            if left_s <= 0 or status.settled or any(_settled(status, t) for t in targets):
                return status
            async with self._changed:
                try:
                    await asyncio.wait_for(self._changed.wait(), min(left_s, 1.0))
                except asyncio.TimeoutError:
                    pass

    async def steps(self) -> list[messages.StepInfo]:
        return await step_infos(self)

    async def prune(self, body: messages.Prune) -> messages.Ok:
        """A person wants checkpoints gone, memory included; the run machine deletes them tier by tier."""
        self.executor.tell_run(events.PruneAsked(frozenset(body.checkpoints)))
        return messages.Ok()

    async def close_rank(self, body: messages.Close) -> messages.ClosedAnswer:
        """One rank is done; when all are, flush, promote, free."""
        trainer = self.launches.trainers.get(body.rank)
        if trainer is not None and not trainer.closed:
            trainer.closed, trainer.discard = True, body.discard
        if self.launches.all_closed and self._end is None:
            discard = all(t.discard for t in self.launches.trainers.values())
            self.executor.tell_run(events.CloseAsked(discard))
        deadline = asyncio.get_running_loop().time() + body.wait_s
        while self._end is None and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(_BUSY_POLL_S)
        if self._end is None:
            return messages.ClosedAnswer(False, self._waiting_for())
        reason, error = self._end
        if error is not None:
            self._end = None
        return messages.ClosedAnswer(error is None, error=dict(error) if error else None)

    def _waiting_for(self) -> str:
        absent = [
            r for r in range(self.launches.world_size) if not getattr(self.launches.trainers.get(r), "closed", False)
        ]
        if absent:
            return f"rank {', '.join(map(str, absent))} to close"
        return self.executor.run.waiting_for()

    async def stop(self, body: messages.Stop) -> messages.Ok:
        """End the agent by hand. Raises: RunBusyError while trainers live."""
        if self.launches.anyone_alive:
            raise RunBusyError("trainers are attached", hint="end the job first")
        if body.discard:
            self.executor.tell_run(events.CloseAsked(True))
        else:
            self.terminate()
        return messages.Ok()

    # -- looking --------------------------------------------------------------------------------------------------------
    def errors_since(self, number: int) -> messages.ErrorList:
        news = [dict(e) for n, e in self._errors if n > number]
        return messages.ErrorList(self.run_page.errors, news)

    def last_errors(self) -> list[dict[str, Any]]:
        return [dict(e) for _, e in self._errors]

    def newest_committed(self, tier: str) -> int:
        """The newest step committed on a tier, as far as this agent knows; -1: none."""
        return max((c.step for c in self.executor.run.committed(tier)), default=-1)

    def status(self) -> dict[str, Any]:
        return status_of(self)

    def metrics_text(self) -> bytes:
        return metrics_text(self)


def _settled(status: messages.SaveStatus, target: str) -> bool:
    if target == "memory":
        return status.memory != "staged"
    state = status.tiers.get(target)
    return state is not None and state.state not in ("waiting", "flushing")
