"""The agent's part of a load: which checkpoint is the newest loadable, and having its images in slots for its ranks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from holdfast.agent.arena import Arena
from holdfast.agent.contents import View
from holdfast.agent.executor import Executor
from holdfast.agent.fetching import Fetching
from holdfast.agent.host import Host
from holdfast.agent.poller import image_id
from holdfast.agent.readers import Readers
from holdfast.agent.repairing import Repairing
from holdfast.agent.shelf import Shelf
from holdfast.errors import HoldfastError, LoadError
from holdfast.lifecycle import events
from holdfast.model.identity import CheckpointId, ImageId
from holdfast.model.image import ImageRecord
from holdfast.wire import messages

_SETTLE_POLL_S = 0.01
_FORMING_WAIT_S = 5.0


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

    def __init__(self, host: Host, executor: Executor, arena: Arena, shelf: Shelf, repairing: Repairing) -> None:
        self._host = host
        self._executor = executor
        self._arena = arena
        self._shelf = shelf
        self._readers = Readers(executor)
        self._repairing = repairing
        self._fetching = Fetching(host, executor, arena, shelf, self._readers, repairing)

    # -- which --------------------------------------------------------------------------------------------------------
    async def loadable(self, *, step: int | None, below: CheckpointId | None) -> messages.Loadable:
        """The newest loadable checkpoint of the lineage (`step`: that one; `below`: older than that)."""
        await self._settle()
        view = await self._host.in_thread(self._shelf.contents.view)
        if view.unknown is not None:
            raise view.unknown
        self._shelf.claiming.claims.go_by(view.standing)
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
                await self._candidate(checkpoint, memory, view.committed.get(checkpoint, []))
            except HoldfastError as e:
                problems.append(f"{checkpoint}: {e.message}")
                continue
            return messages.Loadable(checkpoint, False, problems)
        empty = view.empty and not memory
        if view.abandoned and not problems:
            problems.append(f"{len(view.abandoned)} checkpoint(s) of abandoned attempts are not on the lineage")
        return messages.Loadable(None, empty, problems)

    async def _settle(self, checkpoint: CheckpointId | None = None) -> None:
        """Wait until nothing (or not this step) that may become whole is being checksummed or checked for coverage.

        A step that never becomes whole is not waited for long: its ranks are gone, and the run machine drops it.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        while self._executor.node.checking and loop.time() < began + self._host.settings.load_timeout_s:
            await asyncio.sleep(_SETTLE_POLL_S)
        while self._forming(checkpoint) and loop.time() < began + _FORMING_WAIT_S:
            await asyncio.sleep(_SETTLE_POLL_S)

    def _forming(self, checkpoint: CheckpointId | None) -> bool:
        steps = self._executor.run.steps()
        return any(s.memory == "staged" and checkpoint in (None, s.checkpoint) for s in steps)

    def _in_memory(self) -> dict[CheckpointId, dict[ImageId, ImageRecord]]:
        """Whole checkpoints in this node's slots, with what they rely on."""
        held, whole = self._executor.held(), self._executor.whole()
        records = {r.id: r for r in held.values()}
        found: dict[CheckpointId, dict[ImageId, ImageRecord]] = {}
        for view in self._executor.node.slots():
            header = view.header
            if view.slot in held and header is not None and header.id.checkpoint in whole:
                parts = (i for i in (header.id, *header.relies_on) if i in records)
                found.setdefault(header.id.checkpoint, {}).update({i: records[i] for i in parts})
        return found

    async def _candidate(
        self,
        checkpoint: CheckpointId,
        memory: dict[CheckpointId, dict[ImageId, ImageRecord]],
        tiers: list[str],
    ) -> _Candidate:
        if checkpoint in memory:
            return _Candidate(checkpoint, memory[checkpoint], tiers)
        errors: list[str] = []
        for tier in tiers:
            try:
                manifest = await self._host.in_thread(self._shelf.contents.manifest, tier, checkpoint)
            except HoldfastError as e:
                errors.append(f"{tier}: {e.message}")
                continue
            return _Candidate(checkpoint, {r.id: r for r in manifest.images}, tiers)
        raise LoadError("; ".join(errors) or "no copy is left")

    # -- where --------------------------------------------------------------------------------------------------------
    async def place(self, body: messages.Fetch) -> messages.Place:
        """The nearest tier from which the rank may read the checkpoint by itself; it counts as loading from now on.

        None where a slot holds an image of it, no tier has good copies of all, or its steps share images: those have to
        stand in memory, for the next save to compare with.

        Raises: LoadError: no copy is left.
        """
        with self._begun(body):
            candidate, view = await self._found(body.checkpoint)
            records = set(candidate.images.values())
            if records & set(self._executor.held().values()) or any(r.id.image for r in records):
                return messages.Place(None)
            tier = next((t for t in candidate.tiers if self._fetching.is_good(t, candidate.images)), None)
            if tier is not None:
                self._repairing.soon(body.checkpoint, view.wounds.get(body.checkpoint, []))
            return messages.Place(tier)

    @contextlib.contextmanager
    def _begun(self, body: messages.Fetch) -> Iterator[None]:
        """The rank reads this checkpoint, unless this fails."""
        self._readers.begin(body.rank, body.checkpoint)
        try:
            yield
        except BaseException:
            if self._readers.reads(body.rank, body.checkpoint):
                self._readers.end(body.rank)
            raise

    async def _found(self, checkpoint: CheckpointId) -> tuple[_Candidate, View]:
        """A checkpoint as it stands now, in memory or on tiers."""
        # An agent that has just begun looks at its slots first: what it was told to fetch may stand in them.
        await self._settle(checkpoint)
        view = await self._host.in_thread(self._shelf.contents.view)
        return await self._candidate(checkpoint, self._in_memory(), view.committed.get(checkpoint, [])), view

    # -- bring --------------------------------------------------------------------------------------------------------
    async def fetch(self, body: messages.Fetch) -> messages.FetchAnswer:
        """Every image of the checkpoint in a verified, pinned slot.

        Raises: LoadError naming every copy that was tried; CapacityError.
        """
        with self._begun(body):
            return messages.FetchAnswer(await self._fetch_all(body.checkpoint, body.rank))

    async def _fetch_all(self, checkpoint: CheckpointId, rank: int) -> list[messages.FetchedImage]:
        candidate, view = await self._found(checkpoint)
        records = [record for _, record in sorted(candidate.images.items())]
        tasks = [
            asyncio.create_task(self._fetching.bring(rank, checkpoint, record, candidate.tiers)) for record in records
        ]
        try:
            found = list(await asyncio.gather(*tasks))
            self._repairing.soon(checkpoint, view.wounds.get(checkpoint, []))
            return found
        finally:
            # Where one failed, none of the others may pin anything any more; what they wait for comes all the same.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # -- afterwards ---------------------------------------------------------------------------------------------------
    def unpin(self, rank: int) -> None:
        """A rank's load is over, or the rank is gone."""
        self._readers.end(rank)

    async def unpinned(self, body: messages.Unpin) -> messages.Ok:
        """A rank says that its load is over.

        If it worked, and the step stands on no tier, its slots stay for the claim: until then memory need not keep it.
        """
        checkpoint = self._readers.reading(body.rank)
        if body.loaded and checkpoint is not None and not self._durable(checkpoint):
            self._readers.stand(body.rank)
        else:
            self.unpin(body.rank)
        return messages.Ok()

    def claimed(self) -> None:
        """The launch owns an attempt: what it stands on is kept as any step of the lineage from now on."""
        self._readers.stood()

    def _durable(self, checkpoint: CheckpointId) -> bool:
        return any(checkpoint in self._executor.run.committed(r.name) for r in self._host.settings.beyond_memory)

    def forget(self) -> None:
        """A new launch: what the old ranks were reading, and what they found bad on tiers, is over."""
        self._readers.end_all()
        self._fetching.forget()
        self._repairing.forget()

    async def bad_image(self, body: messages.BadImage) -> messages.Ok:
        """A trainer found a held image bad: it goes, and the next-nearest copy is used."""
        slot = self._arena.slots.get(body.slot)
        if slot is None or image_id(slot) != body.id:
            return messages.Ok()  # told before, by another rank or to the agent before: it is gone
        error = LoadError(f"{body.id} in memory: {body.reason}", step=body.id.step).to_dict()
        self._readers.drop(body.slot)
        self._executor.tell_node(events.FoundBad(body.slot, error))
        return messages.Ok()
