"""Load: all ranks agree once on the newest loadable step; each copies what it needs, and proves its part on the way.

What is only on a tier is read by the ranks themselves where no two need the same bytes (direct.py). Else the node's
agent brings images into slots, reading each byte once; every rank maps the same slots. A copy that proves bad is
reported to the agent, which finds the next-nearest one, and the state is filled again; if none is left, all ranks
together take the next older step and say so.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from holdfast.errors import AgentError, ClosedError, CorruptError, DeadlineError, HoldfastError, LoadError
from holdfast.format.header import parse_header
from holdfast.format.image import block_of, check_block, check_table
from holdfast.model.identity import CheckpointId
from holdfast.trainer.apply import LoadPlan, plan_load
from holdfast.trainer.differences import Differences
from holdfast.trainer.direct import DirectLoad
from holdfast.trainer.move import cores
from holdfast.trainer.ranks import Ranks, Talk
from holdfast.trainer.saved import Source
from holdfast.trainer.session import Session
from holdfast.units import format_bytes
from holdfast.wire import messages
from holdfast.wire.pages import SlotState

log = logging.getLogger("holdfast")

_MAX_TRIES = 64
_MEMORY = "memory"
_NO_ANSWER = (AgentError, ClosedError, DeadlineError)
"""Who was asked is gone or stalled: that ends a load on all ranks, for it says nothing against the step."""


@dataclass(frozen=True, slots=True)
class _Bad:
    """An image that failed its check on this rank."""

    image: messages.FetchedImage
    error: HoldfastError


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load found, how many bytes of its images came from which tier, and what `strict=False` passed over."""

    checkpoint: CheckpointId
    bytes_by_tier: dict[str, int]
    differences: Differences = field(default_factory=Differences)

    def __str__(self) -> str:
        return f"{self.checkpoint} from {', '.join(f'{t} ({format_bytes(n)})' for t, n in self.bytes_by_tier.items())}"


class Loader:
    """One load on all ranks. Every collective follows an exchange of outcomes, so no rank waits for one that failed."""

    def __init__(self, session: Session, ranks: Ranks) -> None:
        self._session = session
        self._ranks = ranks
        self._touched = False
        self.notes: list[str] = []

    def load(self, state: dict[str, Any], *, step: int | None, strict: bool) -> Loaded | None:
        """The checkpoint now in `state`, or None on a fresh home. Raises: see Checkpointer.load."""
        loaded: Loaded | None = None
        with self._ranks.talk() as talk:
            try:
                loaded = self._load(talk, state, step, strict)
                return loaded
            except HoldfastError as e:
                if self._touched:
                    e.message += " (the live state is undefined now; it can be loaded again)"
                raise
            finally:
                # Where it cannot be said, the pins end with this launch; what the load raised is what counts.
                with contextlib.suppress(HoldfastError):
                    unpin = messages.Unpin(self._session.rank, loaded=loaded is not None)
                    self._session.tell("/unpin", unpin, messages.Ok)

    def _load(self, talk: Talk, state: dict[str, Any], step: int | None, strict: bool) -> Loaded | None:
        below: CheckpointId | None = None
        for _ in range(_MAX_TRIES):
            found = talk.first(partial(self._loadable, step, below))
            if found.checkpoint is None:
                if found.empty and step is None:
                    return None
                raise LoadError(_nothing(found, step, self.notes), hint=_hint(step), step=step)
            if self._take(talk, found.checkpoint, state, strict):
                loaded = Loaded(found.checkpoint, self._bytes_by_tier, self._differences)
                if found.problems or self.notes:
                    passed_over = "; ".join([*found.problems, *self.notes])
                    log.warning("loaded %s; passed over: %s", found.checkpoint, passed_over)
                log.info("loaded %s", loaded)
                return loaded
            if step is not None:
                raise LoadError(_nothing(found, step, self.notes), hint=_hint(step), step=step)
            below = found.checkpoint
        raise LoadError(f"gave up after {_MAX_TRIES} steps: {'; '.join(self.notes)}", hint=_hint(step), step=step)

    def _loadable(self, step: int | None, below: CheckpointId | None) -> messages.Loadable:
        query: dict[str, object] = {"step": step}
        if below is not None:
            query |= {"below_attempt": below.attempt, "below_step": below.step}
        limit_s = self._session.settings.load_timeout_s
        return self._session.ask("/loadable", messages.Loadable, timeout_s=limit_s, query=query)

    def _take(self, talk: Talk, checkpoint: CheckpointId, state: dict[str, Any], strict: bool) -> bool:
        """Fill the state from this checkpoint, from the first copies that prove good. False: it cannot be had, and
        `notes` says why."""
        if self._take_directly(talk, checkpoint, state, strict):
            return True
        for _ in range(_MAX_TRIES):
            images = self._fetch(talk, checkpoint)
            if images is None:
                return False
            sources: list[Source] = []
            if not self._all_good(talk, partial(self._open_all, images, sources)):
                continue
            plan = self._plan(talk, state, sources, strict)
            self._touched = True
            if self._all_good(talk, partial(self._fill, talk, plan, images)):
                talk.each(plan.finish)
                self._differences = plan.differences
                return True
        return False

    def _take_directly(self, talk: Talk, checkpoint: CheckpointId, state: dict[str, Any], strict: bool) -> bool:
        """Fill the state past the arena, where that is the better way. False: it was not, or failed."""
        places = talk.each(partial(self._place, checkpoint))
        tier = places[0]
        if tier is None or any(place != tier for place in places):
            return False
        load = DirectLoad(self._session.settings, talk, tier)
        try:
            if not load.run(checkpoint, state, strict=strict):
                return False
        finally:
            self._touched |= load.touched
            self.notes += load.notes
        self._bytes_by_tier, self._differences = {tier: load.read_bytes}, load.differences
        return True

    def _place(self, checkpoint: CheckpointId) -> str | None:
        """The tier from which this rank may read the checkpoint by itself; it is kept there until `unpin`."""
        where = messages.Fetch(checkpoint, self._session.rank)
        try:
            return self._session.tell("/place", where, messages.Place).tier
        except _NO_ANSWER:
            raise
        except HoldfastError:  # the fetch says what is wrong
            return None

    def _fetch(self, talk: Talk, checkpoint: CheckpointId) -> list[messages.FetchedImage] | None:
        """Have the agent bring the images into slots; None when it says that one of them cannot be had."""
        fetch = messages.Fetch(checkpoint, self._session.rank)
        limit_s = self._session.settings.load_timeout_s

        def ask() -> messages.FetchAnswer | HoldfastError:
            try:
                return self._session.tell("/fetch", fetch, messages.FetchAnswer, timeout_s=limit_s)
            except _NO_ANSWER:
                raise
            except HoldfastError as e:
                return e

        answers = talk.each(ask)
        failed = next((a for a in answers if isinstance(a, HoldfastError)), None)
        if failed is not None:
            self.notes.append(f"{checkpoint}: {failed.message}")
            return None
        told = [a.images for a in answers if isinstance(a, messages.FetchAnswer)]
        self._bytes_by_tier = _bytes_by_tier(told)
        return told[talk.rank]

    def _open_all(self, images: list[messages.FetchedImage], sources: list[Source]) -> list[_Bad]:
        """Add to `sources` the images in their slots, with what a plan reads of them proven: header, plain values,
        block table. Answers those that are bad."""
        bad: list[_Bad] = []
        for image in images:
            try:
                sources.append(self._open(image))
            except HoldfastError as e:
                bad.append(_Bad(image, e))
        return bad

    def _open(self, image: messages.FetchedImage) -> Source:
        slot = self._session.slots.slot(image.slot)
        if slot.page.state != SlotState.HELD or slot.page.generation != image.generation:
            raise CorruptError(f"slot {image.slot} no longer holds {image.id}")
        buffer = slot.room(image.size_bytes)
        header = parse_header(buffer, image.size_bytes)
        if header.id != image.id:
            raise CorruptError(f"the slot holds {header.id}, not {image.id}")
        layout = header.layout
        if check_table(buffer, layout) != image.crc64nvme:
            raise CorruptError(f"{image.id} is not the image with checksum {image.crc64nvme:016x}")
        plain_stop = layout.plain_start + layout.plain_capacity_bytes
        for start, stop in ((0, layout.header_bytes), (layout.plain_start, plain_stop)):
            for block in range(block_of(start), block_of(stop - 1) + 1):
                check_block(buffer, layout, block)
        return Source(header, buffer)

    def _plan(self, talk: Talk, state: dict[str, Any], sources: Sequence[Source], strict: bool) -> LoadPlan:
        """A difference in structure on any rank stops all before anything is copied."""
        plans: list[LoadPlan] = []
        talk.each(lambda: plans.append(plan_load(state, sources, rank=talk.rank, world_size=talk.size, strict=strict)))
        return plans[0]

    def _fill(self, talk: Talk, plan: LoadPlan, images: list[messages.FetchedImage]) -> list[_Bad]:
        """Copy; of the images each rank proves its share. Those that are bad."""
        share = range(talk.rank, len(images), talk.size)
        found = plan.filling.fill(prove=share, threads=cores(talk.size))
        return [_Bad(images[i], error) for i, error in found.items()]

    def _all_good(self, talk: Talk, look: Callable[[], list[_Bad]]) -> bool:
        """Whether no rank that looked found an image bad; what is bad is noted, and the agent told of it."""
        found = [b for part in talk.each(look) for b in part]
        self.notes += [f"{b.image.id} from {b.image.source}: {b.error.message}" for b in found]
        if found:
            talk.first(partial(self._report, found))
        return not found

    def _report(self, found: list[_Bad]) -> None:
        for bad in found:
            body = messages.BadImage(bad.image.id, bad.image.slot, str(bad.error.message))
            self._session.tell("/bad", body, messages.Ok)


def _bytes_by_tier(answers: list[list[messages.FetchedImage]]) -> dict[str, int]:
    """A rank that asked later was told that the image is in memory: what any rank was told it was read from counts."""
    found: dict[str, int] = {}
    for told in zip(*answers, strict=True):
        tier = next((image.source for image in told if image.source != _MEMORY), _MEMORY)
        found[tier] = found.get(tier, 0) + told[0].size_bytes
    return found


def _hint(step: int | None) -> str:
    """Starting over is no answer to a step that is not there."""
    look = "run `holdfast ls URL` and `holdfast verify URL`"
    return f"{look}; `holdfast prune URL --everything` starts over" if step is None else look


def _nothing(found: messages.Loadable, step: int | None, notes: list[str]) -> str:
    what = f"step {step}" if step is not None else "no checkpoint"
    reasons = [*found.problems, *notes]
    if step is not None:
        return f"{what} cannot be loaded: {'; '.join(reasons) or 'it does not exist on this lineage'}"
    return f"something is there but {what} can be loaded: {'; '.join(reasons) or 'no step ever became whole'}"
