"""Load: all ranks agree once on the newest loadable step, each verifies its part, then each copies what it needs.

The node's agent brings images that are only on a tier into slots, reading each byte once; every rank maps the same
slots. A copy that proves bad is reported to the agent, which finds the next-nearest one; if none is left, all ranks
together take the next older step and say so.
"""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from holdfast.errors import CorruptError, HoldfastError, LoadError
from holdfast.format.checksum import block_count
from holdfast.format.header import parse_header
from holdfast.format.image import check_block, check_table
from holdfast.model.identity import CheckpointId
from holdfast.model.image import ImageHeader
from holdfast.trainer.apply import LoadPlan, Source, plan_load
from holdfast.trainer.ranks import Ranks, Talk
from holdfast.trainer.session import Session
from holdfast.units import format_bytes
from holdfast.wire import messages
from holdfast.wire.pages import SlotState

log = logging.getLogger("holdfast")

_MAX_TRIES = 64
_MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class _Bad:
    """An image that failed its check on this rank."""

    image: messages.FetchedImage
    error: HoldfastError


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load found, and how many bytes of its images came from which tier."""

    checkpoint: CheckpointId
    bytes_by_tier: dict[str, int]

    def __str__(self) -> str:
        return f"{self.checkpoint} from {', '.join(f'{t} ({format_bytes(n)})' for t, n in self.bytes_by_tier.items())}"


class Loader:
    """One load on all ranks. Every collective follows an exchange of outcomes, so no rank waits for one that failed."""

    def __init__(self, session: Session, ranks: Ranks) -> None:
        self._session = session
        self._ranks = ranks
        self.notes: list[str] = []

    def load(self, state: dict[str, Any], *, step: int | None, strict: bool) -> Loaded | None:
        """The checkpoint now in `state`, or None on a fresh home. Raises: see Checkpointer.load."""
        with self._ranks.talk() as talk:
            try:
                return self._load(talk, state, step, strict)
            finally:
                self._session.tell("/unpin", messages.Unpin(self._session.rank), messages.Ok)

    def _load(self, talk: Talk, state: dict[str, Any], step: int | None, strict: bool) -> Loaded | None:
        below: CheckpointId | None = None
        for _ in range(_MAX_TRIES):
            found = talk.first(partial(self._loadable, step, below))
            if found.checkpoint is None:
                if found.empty and step is None:
                    return None
                raise LoadError(_nothing(found, step, self.notes), hint=_HINT, step=step)
            if not self._fetch_and_verify(talk, found.checkpoint):
                if step is not None:
                    raise LoadError(_nothing(found, step, self.notes), hint=_HINT, step=step)
                below = found.checkpoint
                continue
            if found.problems or self.notes:
                log.warning("loading %s; passed over: %s", found.checkpoint, "; ".join([*found.problems, *self.notes]))
            self._apply(talk, state, strict)
            loaded = Loaded(found.checkpoint, self._bytes_by_tier)
            log.info("loaded %s", loaded)
            return loaded
        raise LoadError(f"gave up after {_MAX_TRIES} copies: {'; '.join(self.notes)}", hint=_HINT, step=step)

    def _loadable(self, step: int | None, below: CheckpointId | None) -> messages.Loadable:
        query: dict[str, object] = {"step": step}
        if below is not None:
            query |= {"below_attempt": below.attempt, "below_step": below.step}
        limit_s = self._session.settings.load_timeout_s
        return self._session.ask("/loadable", messages.Loadable, timeout_s=limit_s, query=query)

    def _fetch_and_verify(self, talk: Talk, checkpoint: CheckpointId) -> bool:
        """Have the images in slots and prove them. False: this checkpoint cannot be had, and `notes` says why."""
        fetch = messages.Fetch(checkpoint, self._session.rank)
        limit_s = self._session.settings.load_timeout_s

        def ask() -> messages.FetchAnswer | HoldfastError:
            try:
                return self._session.tell("/fetch", fetch, messages.FetchAnswer, timeout_s=limit_s)
            except HoldfastError as e:
                return e

        for _ in range(_MAX_TRIES):
            answers = talk.gather(ask())
            failed = next((a for a in answers if isinstance(a, HoldfastError)), None)
            if failed is not None:
                self.notes.append(f"{checkpoint}: {failed.message}")
                return False
            answer = answers[talk.rank]
            assert isinstance(answer, messages.FetchAnswer)
            self._images = answer.images
            self._bytes_by_tier = _bytes_by_tier([a.images for a in answers if isinstance(a, messages.FetchAnswer)])
            bad = [b for part in talk.gather(self._verify_share(answer.images)) for b in part]
            if not bad:
                return True
            for b in bad:
                self.notes.append(f"{b.image.id} from {b.image.source}: {b.error.message}")
            talk.first(partial(self._report_all, bad))
        return False

    def _report_all(self, bad: list[_Bad]) -> None:
        for b in bad:
            self._report(b)

    def _report(self, bad: _Bad) -> None:
        body = messages.BadImage(bad.image.id, bad.image.slot, str(bad.error.message))
        self._session.tell("/bad", body, messages.Ok)

    def _verify_share(self, images: list[messages.FetchedImage]) -> list[_Bad]:
        """Check this rank's part of the images, block by block on all cores the process has."""
        mine = images[self._ranks.rank :: self._ranks.size]
        bad: list[_Bad] = []
        with ThreadPoolExecutor(_threads(self._ranks.size), thread_name_prefix="holdfast-verify") as pool:
            for image in mine:
                try:
                    self._verify(image, pool)
                except HoldfastError as e:
                    bad.append(_Bad(image, e))
        return bad

    def _verify(self, image: messages.FetchedImage, pool: ThreadPoolExecutor) -> None:
        buffer, header = self._open(image)
        if header.id != image.id:
            raise CorruptError(f"the slot holds {header.id}, not {image.id}")
        check_table(buffer, header.layout)
        blocks = range(block_count(header.layout.table_start))
        for _ in pool.map(lambda b: check_block(buffer, header.layout, b), blocks, chunksize=8):
            pass

    def _open(self, image: messages.FetchedImage) -> tuple[memoryview, ImageHeader]:
        slot = self._session.slots.slot(image.slot)
        if slot.page.state != SlotState.HELD or slot.page.generation != image.generation:
            raise CorruptError(f"slot {image.slot} no longer holds {image.id}")
        buffer = slot.room(image.size_bytes)
        return buffer, parse_header(buffer, image.size_bytes)

    def _apply(self, talk: Talk, state: dict[str, Any], strict: bool) -> None:
        """Copy into the live state; a difference in structure on any rank stops all before anything is copied."""
        sources = [Source(header, buffer) for buffer, header in map(self._open, self._images)]
        plans: list[LoadPlan] = []
        talk.each(lambda: plans.append(plan_load(state, sources, rank=talk.rank, world_size=talk.size, strict=strict)))
        try:
            talk.each(plans[0].run)
        except HoldfastError as e:
            e.message += " (the live state is undefined now; it can be loaded again)"
            raise


def _bytes_by_tier(answers: list[list[messages.FetchedImage]]) -> dict[str, int]:
    """A rank that asked later was told that the image is in memory: what any rank was told it was read from counts."""
    found: dict[str, int] = {}
    for told in zip(*answers, strict=True):
        tier = next((image.source for image in told if image.source != _MEMORY), _MEMORY)
        found[tier] = found.get(tier, 0) + told[0].size_bytes
    return found


_HINT = "run `holdfast ls URL` and `holdfast verify URL`; `holdfast prune URL --everything --yes` starts over"


def _nothing(found: messages.Loadable, step: int | None, notes: list[str]) -> str:
    what = f"step {step}" if step is not None else "no checkpoint"
    reasons = [*found.problems, *notes]
    if step is not None:
        return f"{what} cannot be loaded: {'; '.join(reasons) or 'it does not exist on this lineage'}"
    return f"something is there but {what} can be loaded: {'; '.join(reasons) or 'no step ever became whole'}"


def _threads(local_ranks: int) -> int:
    return max(1, len(os.sched_getaffinity(0)) // local_ranks)
