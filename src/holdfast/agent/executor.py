"""Performs what the two machines want done, and tells them what came of it.

Everything quick happens at once on the event loop; everything that touches bytes or tiers runs in bounded thread pools
and comes back as exactly one event. No decision is taken here.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from holdfast.agent.arena import Arena
from holdfast.agent.images import Headers, check_image, final_while_sealed, seal_image
from holdfast.agent.keeping import Refused
from holdfast.agent.poller import image_id
from holdfast.agent.shelf import Shelf
from holdfast.errors import AgentError, HoldfastError
from holdfast.lifecycle import actions, events
from holdfast.lifecycle.node import NodeMachine
from holdfast.lifecycle.run import RunMachine
from holdfast.model.identity import CheckpointId
from holdfast.model.image import ImageHeader, ImageRecord
from holdfast.store.flush import Source
from holdfast.wire.pages import SlotState, barrier

log = logging.getLogger("holdfast.agent")

_SEALERS = 1
"""Checksum threads: one runs at memory speed already, and the trainer wants its cores."""


class Listener(Protocol):
    """What the executor tells the agent."""

    def step_changed(self, checkpoint: CheckpointId) -> None:
        """The status of a step changed."""

    def reported(self, error: events.Error) -> None:
        """Something failed behind the training loop."""

    def ended(self, reason: str, error: events.Error | None, *, free: bool) -> None:
        """The run needs this agent no more."""

    def mask_of(self, tier: str) -> int:
        """The tier's bit on pages."""

    def maybe_superseded(self, error: HoldfastError) -> None:
        """A commit or a deletion failed; perhaps because somebody else owns the run."""


class Executor:
    """Invariants: events are handled one at a time, in the order they arrive; per machine actions keep their order.

    Threads: the agent's event loop only; `_offload` brings results of worker threads back to it.
    """

    def __init__(self, *, arena: Arena, shelf: Shelf, node: NodeMachine, run: RunMachine, listener: Listener) -> None:
        self.node = node
        self.run = run
        self._arena = arena
        self._shelf = shelf
        self._listener = listener
        self._headers = Headers()
        self._loop = asyncio.get_running_loop()
        self._sealers = ThreadPoolExecutor(_SEALERS, thread_name_prefix="holdfast-seal")
        self._sealing: dict[int, Future[ImageRecord]] = {}
        """Of slots being sealed; done once the machine was told, so that no image appears on a tier before."""
        self._queue: deque[tuple[bool, Any]] = deque()
        self._draining = False
        self._timers: dict[tuple[bool, str], asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._perform: dict[type[Any], Callable[[Any], None]] = {
            actions.Seal: self._seal,
            actions.Verify: self._verify,
            actions.Hold: self._hold,
            actions.MarkCommitted: self._mark_committed,
            actions.Free: self._free,
            actions.Upload: self._upload,
            actions.ToRun: lambda a: self._queue.append((False, a.event)),
            actions.ToNodes: lambda a: self._queue.append((True, a.event)),
            actions.CheckWhole: self._check_whole,
            actions.Commit: self._commit,
            actions.Prune: lambda a: self._delete(a, self._shelf.keeping.prune),
            actions.Sweep: lambda a: self._delete(a, self._shelf.keeping.sweep_steps),
            actions.Notify: lambda a: listener.step_changed(a.checkpoint),
            actions.Report: lambda a: listener.reported(a.error),
            actions.Ended: lambda a: listener.ended(a.reason, a.error, free=a.free),
        }

    # -- events -------------------------------------------------------------------------------------------------------
    def tell_node(self, event: events.NodeEvent) -> None:
        """Something happened on this node."""
        self._queue.append((True, event))
        self._drain()

    def tell_run(self, event: events.RunEvent) -> None:
        """Something happened to the run."""
        self._queue.append((False, event))
        self._drain()

    def _drain(self) -> None:
        if self._draining:
            return
        self._draining = True
        try:
            while self._queue:
                to_node, event = self._queue.popleft()
                wanted = self.node.handle(event) if to_node else self.run.handle(event)
                for action in wanted:
                    self._act(to_node, action)
        finally:
            self._draining = False

    def _act(self, of_node: bool, action: Any) -> None:
        if isinstance(action, actions.StartTimer):
            self._start_timer(of_node, action)
        elif isinstance(action, actions.StopTimer):
            handle = self._timers.pop((of_node, action.timer), None)
            if handle is not None:
                handle.cancel()
        else:
            self._perform[type(action)](action)

    def _start_timer(self, of_node: bool, action: actions.StartTimer) -> None:
        key = (of_node, action.timer)
        if key in self._timers:
            self._timers[key].cancel()

        def fire() -> None:
            self._timers.pop(key, None)
            (self.tell_node if of_node else self.tell_run)(events.TimerFired(action.timer))

        self._timers[key] = self._loop.call_later(action.after_s, fire)

    def _offload(
        self,
        pool: ThreadPoolExecutor,
        work: Callable[[], Any],
        then: Callable[[Any], None],
        failed: Callable[[HoldfastError], None],
    ) -> None:
        """Run `work` in a thread; its result or its error comes back here as one event."""

        async def run() -> None:
            try:
                result = await self._loop.run_in_executor(pool, work)
            except HoldfastError as e:
                failed(e)
            except Exception as e:
                log.exception("unexpected failure")
                failed(AgentError(f"unexpected {type(e).__name__}: {e}", hint="this is a defect; see agent.log"))
            else:
                then(result)

        task = self._loop.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def held(self) -> dict[int, ImageRecord]:
        """Slots whose image is proven, with its record."""
        return self.node.held()

    def whole(self) -> set[CheckpointId]:
        """Checkpoints that memory holds completely and proven."""
        return {s.checkpoint for s in self.run.steps() if s.memory == "whole"}

    # -- the node's actions -------------------------------------------------------------------------------------------
    def _seal(self, action: actions.Seal) -> None:
        slot = self._arena.slots[action.slot]
        image, expected = slot.image, image_id(slot)
        self._sealing[action.slot] = Future()
        self._offload(
            self._sealers,
            lambda: seal_image(image, expected, self._headers),
            lambda r: self._sealed(action.slot, *r),
            lambda e: self._seal_failed(action.slot, e),
        )

    def _sealed(self, slot: int, record: ImageRecord, header: ImageHeader) -> None:
        self.tell_node(events.Sealed(slot, record, header))
        self._sealing.pop(slot).set_result(record)

    def _seal_failed(self, slot: int, error: HoldfastError) -> None:
        self.tell_node(events.SealFailed(slot, error.to_dict()))
        self._sealing.pop(slot).set_exception(error)

    def _verify(self, action: actions.Verify) -> None:
        slot = self._arena.slots[action.slot]
        image, expected = slot.image, image_id(slot)
        self._offload(
            self._sealers,
            lambda: check_image(image, expected, self._headers),
            lambda r: self.tell_node(events.Verified(action.slot, *r)),
            lambda e: self.tell_node(events.VerifyFailed(action.slot, e.to_dict())),
        )

    def _hold(self, action: actions.Hold) -> None:
        page = self._arena.slots[action.slot].page
        if page.generation == action.generation:
            page.crc64nvme = action.crc64nvme
            barrier()
            page.state = SlotState.HELD

    def _mark_committed(self, action: actions.MarkCommitted) -> None:
        page = self._arena.slots[action.slot].page
        if page.generation == action.generation:
            page.committed_mask |= self._listener.mask_of(action.tier)

    def _free(self, action: actions.Free) -> None:
        slot = self._arena.slots.get(action.slot)
        if slot is not None and slot.page.generation == action.generation:
            slot.page.committed_mask = 0
            barrier()
            slot.page.state = SlotState.FREE

    def _upload(self, action: actions.Upload) -> None:
        image, record = self._arena.slots[action.slot].image, action.record
        sealing = self._sealing.get(action.slot)

        def upload() -> None:
            if record is not None:
                source = Source(action.image, image, len(image), lambda: record)
            else:
                assert sealing is not None, "an image without record is being sealed"
                source = Source(action.image, image, final_while_sealed(image, self._headers), sealing.result)
            self._shelf.keeping.upload(action.tier, source)

        self._offload(
            self._shelf.tiers.uploads(action.tier),
            upload,
            lambda _: self.tell_node(events.Uploaded(action.tier, action.slot)),
            lambda e: self._upload_failed(action, e),
        )

    def _upload_failed(self, action: actions.Upload, error: HoldfastError) -> None:
        told = _not_there(error, action.image.step, action.tier)
        self.tell_node(events.UploadFailed(action.tier, action.slot, told))

    # -- the run's actions --------------------------------------------------------------------------------------------
    def _check_whole(self, action: actions.CheckWhole) -> None:
        first = self._first_image(action)
        self._offload(
            self._shelf.checks,
            lambda: self._shelf.keeping.check_whole(action.checkpoint, action.images, first),
            lambda _: self.tell_run(events.WholeChecked(action.checkpoint)),
            lambda e: self.tell_run(events.WholeChecked(action.checkpoint, e.to_dict())),
        )

    def _first_image(self, action: actions.CheckWhole) -> memoryview | None:
        """Rank 0's image, whose plain values the manifest may hold."""
        want = next((i.record for i in action.images if (i.record.id.rank, i.record.id.image) == (0, 0)), None)
        slots = (self._arena.slots[n] for n, record in self.held().items() if record == want)
        return next((s.image for s in slots), None)

    def _commit(self, action: actions.Commit) -> None:
        self._offload(
            self._shelf.tiers.acts(action.tier),
            lambda: self._shelf.keeping.commit(action.tier, action.checkpoint, action.images),
            lambda notes: self.tell_run(events.CommitDone(action.tier, action.checkpoint, notes)),
            lambda e: self._commit_failed(action, e),
        )

    def _commit_failed(self, action: actions.Commit, error: HoldfastError) -> None:
        self._listener.maybe_superseded(error)
        told = _not_there(error, action.checkpoint.step, action.tier)
        self.tell_run(events.CommitFailed(action.tier, action.checkpoint, told))

    def _delete(
        self, action: actions.Prune | actions.Sweep, work: Callable[[str, frozenset[Any], frozenset[Any]], Refused]
    ) -> None:
        self._offload(
            self._shelf.tiers.chores(action.tier),
            lambda: work(action.tier, action.checkpoints, action.spare),
            lambda refused: self._deleted(action, refused),
            lambda e: self.tell_run(events.PruneFailed(action.tier, action.checkpoints, e.to_dict())),
        )

    def _deleted(self, action: actions.Prune | actions.Sweep, refused: Refused) -> None:
        why = {c: e.to_dict() for c, e in refused.items()}
        self.tell_run(events.PruneDone(action.tier, action.checkpoints - refused.keys(), why))

    async def finish(self) -> None:
        """Stop timers and wait for what runs in threads; main.py sees to it that this ends."""
        for handle in self._timers.values():
            handle.cancel()
        self._timers.clear()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._sealers.shutdown(wait=True)


def _not_there(error: HoldfastError, step: int, tier: str) -> events.Error:
    """What a person is told of a copy that was not made: which step is missing where, and why."""
    told = error.to_dict()
    told["message"] = f"step {step} is not on tier {tier}: {error.message}"
    told["tier"], told["step"] = error.tier or tier, step if error.step is None else error.step
    return told
