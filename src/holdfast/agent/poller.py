"""Turns what stands on the pages into events. The pages are the truth; this only remembers what it has already told."""

from __future__ import annotations

from collections.abc import Callable

from holdfast.agent.arena import Arena, Slot
from holdfast.agent.launches import Launches, Trainer
from holdfast.lifecycle import events
from holdfast.model.identity import CheckpointId, ImageId
from holdfast.model.place import TierRule
from holdfast.policy.schedule import names_of_mask
from holdfast.wire.pages import SlotPage, SlotState
from holdfast.wire.processes import process_alive

Dispatch = Callable[[events.NodeEvent], None]
_OWNER_EVERY = 16
"""Look whether the owner of a filling slot lives every so many polls: it reads /proc."""


class Poller:
    """Invariants: a slot's generation is told as staged at most once; what a trainer waits for is told once per change.

    Threads: the agent's event loop only.
    """

    def __init__(self, arena: Arena, launches: Launches, dispatch: Dispatch) -> None:
        self._arena = arena
        self._launches = launches
        self._dispatch = dispatch
        self._told: dict[int, int] = {}
        self._waiting: dict[int, tuple[int, int]] = {}
        self._at: dict[int, CheckpointId] = {}
        self._given_up: dict[int, int] = {}
        self._gone: set[int] = set()
        self._polls = 0

    def poll(self, rules: tuple[TierRule, ...]) -> None:
        """One look at every page. Trainer pages first: what a rank has passed was staged before, if at all."""
        self._polls += 1
        at = {rank: _at(t) for rank, t in self._launches.trainers.items()}
        given_up = {rank: t.page.given_up_step for rank, t in self._launches.trainers.items()}
        # So, too, what a rank staged before it began to wait is told before that.
        waits = {rank: _wait(t) for rank, t in self._launches.trainers.items()}
        gone = self._newly_gone() if self._polls % _OWNER_EVERY == 0 else []
        staged = [s for s in list(self._arena.slots.values()) if not self._look(s)]
        # An image that steps share is staged before those that rely on it, so it is told before: what stands in
        # `staged` was found before this second look.
        for slot in list(self._arena.slots.values()):
            if slot.page.image and slot.page.state == SlotState.STAGED:
                self._tell(slot, rules)
        for slot in staged:
            self._tell(slot, rules)
        for rank, step in at.items():
            self._wanting(rank, waits[rank])
            self._progress(rank, step, given_up[rank])
        for rank in gone:
            self._gone.add(rank)
            self._dispatch(events.RankGone(rank))

    def _newly_gone(self) -> list[int]:
        return [r for r, t in self._launches.trainers.items() if r not in self._gone and not t.alive]

    def forget(self) -> None:
        """A new launch: what the old trainers waited for is over."""
        for rank in list(self._waiting):
            self._dispatch(events.SlotWantOver(rank))
        self._waiting.clear()
        self._at.clear()
        self._given_up.clear()
        self._gone.clear()

    def _look(self, slot: Slot) -> bool:
        """Whether there is nothing to tell of it as staged."""
        page = slot.page
        if page.state == SlotState.STAGED:
            return self._told.get(slot.number) == page.generation
        if (
            page.state == SlotState.FILLING
            and self._polls % _OWNER_EVERY == 0
            and not process_alive(page.owner_pid, page.owner_start)
        ):
            self._dispatch(events.OwnerGone(slot.number, page.generation))
        return True

    def _tell(self, slot: Slot, rules: tuple[TierRule, ...]) -> None:
        if self._told.get(slot.number) != slot.page.generation:
            self._told[slot.number] = slot.page.generation
            self._dispatch(staged_event(slot, rules))

    def _wanting(self, rank: int, wait: tuple[int, int] | None) -> None:
        if wait == self._waiting.get(rank):
            return
        if wait is None:
            del self._waiting[rank]
            self._dispatch(events.SlotWantOver(rank))
        else:
            self._waiting[rank] = wait
            self._dispatch(events.SlotWanted(rank, *wait))

    def _progress(self, rank: int, at: CheckpointId | None, given_up: int) -> None:
        """Tell how far a rank is: what it has not staged below that step, or of one it gave up, it never will."""
        if at is None:
            return
        if given_up < 0:
            self._given_up.pop(rank, None)
        elif given_up != self._given_up.get(rank):
            self._given_up[rank] = given_up
            self._dispatch(events.RankGaveUp(rank, CheckpointId(at.attempt, given_up)))
        if at != self._at.get(rank):
            self._at[rank] = at
            self._dispatch(events.RankAt(rank, at))


def _at(trainer: Trainer) -> CheckpointId | None:
    page = trainer.page
    attempt, step = page.attempt, page.current_step
    return CheckpointId(attempt, step) if attempt and step >= 0 else None


def _wait(trainer: Trainer) -> tuple[int, int] | None:
    """The step and the number of the image for which a rank waits for a slot."""
    step = trainer.page.waiting_step
    return (step, trainer.page.waiting_image) if step >= 0 else None


def image_id(slot: Slot) -> ImageId:
    """The image a slot's page names."""
    page = slot.page
    return ImageId(page.attempt, page.step, page.rank, page.image)


def staged_event(slot: Slot, rules: tuple[TierRule, ...]) -> events.Staged:
    """What the page of a staged slot says."""
    page = slot.page
    return events.Staged(
        slot=slot.number,
        generation=page.generation,
        image=image_id(slot),
        image_count=page.image_count,
        world_size=page.world_size,
        due=names_of_mask(page.due_mask, rules),
        timed=names_of_mask(page.timed_mask, rules),
        size_bytes=page.image_bytes,
        relies_on=relied_on(page),
    )


def relied_on(page: SlotPage) -> tuple[ImageId, ...]:
    """What a page says that its image relies on: the one image its rank's steps share."""
    if page.image or page.relies_on_step < 0:
        return ()
    return (ImageId(page.attempt, page.relies_on_step, page.rank, 1),)


def adopted_event(slot: Slot, rules: tuple[TierRule, ...]) -> events.Adopted:
    """What the page of a slot says that an earlier agent held."""
    page = slot.page
    return events.Adopted(
        slot=slot.number,
        generation=page.generation,
        image=image_id(slot),
        image_count=page.image_count,
        world_size=page.world_size,
        due=names_of_mask(page.due_mask, rules),
        timed=names_of_mask(page.timed_mask, rules),
        size_bytes=page.image_bytes,
        committed=names_of_mask(page.committed_mask, rules),
        relies_on=relied_on(page),
    )
