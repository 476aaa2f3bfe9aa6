"""What the node machine knows: slots, what occupies them, steps, tiers. State; room.py decides on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from holdfast.lifecycle.events import Error, SlotWanted
from holdfast.model.identity import CheckpointId, ImageId, Lineage
from holdfast.model.image import ImageHeader, ImageRecord
from holdfast.model.place import TierRule


class SlotState(Enum):
    """Of an occupied slot. Only what is HELD counts as an image; what is BAD waits for its readers to go."""

    SEALING = "sealing"
    VERIFYING = "verifying"
    HELD = "held"
    BAD = "bad"


class Flush(Enum):
    """Of one image to one tier; a flush that was skipped, cancelled or failed has no entry."""

    WAITING = "waiting"
    RUNNING = "running"
    CANCELLED = "cancelled"
    """Running, but what comes of it no longer counts."""
    UPLOADED = "uploaded"
    COMMITTED = "committed"


RUNNING = (Flush.RUNNING, Flush.CANCELLED)


@dataclass(slots=True)
class Occupant:
    """An image in a slot."""

    slot: int
    generation: int
    image: ImageId
    image_count: int
    world_size: int
    due: frozenset[str]
    state: SlotState
    flushes: dict[str, Flush]
    record: ImageRecord | None = None
    header: ImageHeader | None = None
    pins: int = 0
    relies_on: tuple[ImageId, ...] = ()
    """Older images that complete the rank's part of the step; they are flushed before this one."""
    stands: set[str] = field(default_factory=set)
    """Tiers that surely have the image. What a page says does not count: a prune may have come since."""
    timed: frozenset[str] = frozenset()
    """Those of `due` that are due by time alone."""
    checkpoint: CheckpointId = field(init=False)
    """Of the image; kept because every decision asks for it."""

    def __post_init__(self) -> None:
        self.checkpoint = self.image.checkpoint

    @property
    def shared(self) -> bool:
        """Whether later steps may rely on the image: any but a rank's first."""
        return self.image.image > 0

    @property
    def busy(self) -> bool:
        """Somebody reads or writes the bytes: the slot cannot be freed, whatever is wanted."""
        computing = self.state in (SlotState.SEALING, SlotState.VERIFYING)
        return computing or self.pins > 0 or any(f in RUNNING for f in self.flushes.values())

    @property
    def flushable(self) -> bool:
        """Its flush may begin: what was just staged is flushed while it is sealed, what is adopted is proven first."""
        return self.state in (SlotState.HELD, SlotState.SEALING)

    @property
    def waiting(self) -> set[str]:
        """Tiers that are still to get the image."""
        return {t for t, f in self.flushes.items() if f is Flush.WAITING}

    def cancel(self, tier: str) -> None:
        """End a flush for its own step: what runs goes on, but no longer counts. What is shared counts for others."""
        if not self.shared:
            self.drop(tier)
        elif self.flushes.get(tier) is Flush.WAITING:
            del self.flushes[tier]

    def drop(self, tier: str) -> None:
        """End a flush of which nothing will come, for any step; what stands on the tier counts no longer."""
        flush = self.flushes.get(tier)
        self.stands.discard(tier)
        if flush in RUNNING:
            self.flushes[tier] = Flush.CANCELLED
        elif flush is not None and flush is not Flush.COMMITTED:
            del self.flushes[tier]

    def cancel_all(self) -> None:
        """`cancel` for every tier."""
        for tier in list(self.flushes):
            self.cancel(tier)

    def drop_all(self) -> None:
        """`drop` for every tier."""
        for tier in {*self.flushes, *self.stands}:
            self.drop(tier)


@dataclass(slots=True)
class Slot:
    """A slot, the rank it counts for, and the number of the rank's images it is for."""

    rank: int | None = None
    image: int = 0
    occupant: Occupant | None = None


@dataclass(slots=True)
class NodeStep:
    """A step as far as this node has images of it; it is forgotten with the last of them."""

    whole: bool = False
    wanted: bool = True
    """Worth keeping in memory. Once false, slots are freed as soon as no flush needs them."""
    forgotten: bool = False
    off: set[str] = field(default_factory=set)
    """Tiers that will not get the step."""
    begun: set[str] = field(default_factory=set)
    """Tiers to which some image of the step was or is being flushed from here."""
    committed: set[str] = field(default_factory=set)


@dataclass(slots=True)
class NodeTier:
    """A tier as this node sees it."""

    rule: TierRule
    lagging: bool = False
    degraded: Error | None = None
    skipped_since_begin: bool = False
    """A due step gave way while the newest flush ran: the tier has not caught up."""
    urgent: CheckpointId | None = None
    flushing: CheckpointId | None = None
    """The step that began a flush last: while anything runs, only its flushes begin."""
    last_begun: int = 0


@dataclass(slots=True)
class NodeState:
    """Everything the node machine knows."""

    slots: dict[int, Slot]
    steps: dict[CheckpointId, NodeStep]
    tiers: dict[str, NodeTier]
    keep_last: int
    lineage: Lineage | None = None
    over: bool = False
    """Everything was freed for good: nothing will rely on what is here."""
    wants: dict[int, SlotWanted] = field(default_factory=dict)
    """Per rank that waits for a slot, for which step and image."""

    def occupants(self, checkpoint: CheckpointId | None = None) -> Iterator[Occupant]:
        """Images here, by slot number; of one step, or all."""
        for number in sorted(self.slots):
            occupant = self.slots[number].occupant
            if occupant is not None and checkpoint in (None, occupant.checkpoint):
                yield occupant

    def cancel(self, tier: str, checkpoint: CheckpointId) -> None:
        """The step will not be committed on the tier, or stands there no more."""
        step = self.steps.get(checkpoint)
        if step is not None:
            step.off.add(tier)
            step.begun.discard(tier)
            step.committed.discard(tier)
            for occupant in self.occupants(checkpoint):
                occupant.cancel(tier)

    def forget(self, checkpoint: CheckpointId) -> None:
        """The step does not exist any more."""
        step = self.steps.get(checkpoint)
        if step is not None:
            step.forgotten, step.wanted, step.whole = True, False, False
            for occupant in self.occupants(checkpoint):
                occupant.cancel_all()

    @property
    def attempt(self) -> int:
        """The highest attempt of the lineage; 0 while none is known."""
        return max(self.lineage.limits, default=0) if self.lineage is not None else 0

    def abandoned(self, checkpoint: CheckpointId) -> bool:
        """Whether the lineage left it behind. Attempts later than the known lineage are merely news."""
        return self.lineage is not None and checkpoint.attempt <= self.attempt and checkpoint not in self.lineage

    # -- images that steps share --------------------------------------------------------------------------------------
    def holding(self, image: ImageId) -> Occupant | None:
        """Where an image is, if it is here and not known to be bad."""
        good = (o for o in self.occupants(image.checkpoint) if o.image == image and o.state is not SlotState.BAD)
        return next(good, None)

    def users(self, image: ImageId) -> list[Occupant]:
        """Images here that rely on it."""
        return [o for o in self.occupants() if image in o.relies_on]

    def shared_by(self, checkpoint: CheckpointId) -> list[Occupant]:
        """Images here that the step has in common with others, its own among them."""
        named = {i for o in self.occupants(checkpoint) for i in (*o.relies_on, *([o.image] if o.shared else ()))}
        return [o for i in sorted(named) if (o := self.holding(i)) is not None]

    def may_be_named(self, occupant: Occupant) -> bool:
        """Whether the rank's next step may rely on it: its newest of that number, of the attempt that trains.

        A trainer relies on it without a word; so it stays until it has staged another, or waits for room to do so.
        """
        image = occupant.image
        if self.over or occupant.state is SlotState.BAD or image.attempt < self.attempt or self._outdated(image):
            return False
        same = (o for o in self.occupants() if (o.image.rank, o.image.image) == (image.rank, image.image))
        return not any(o.image > image and o.state is not SlotState.BAD for o in same)

    def _outdated(self, image: ImageId) -> bool:
        """Whether its rank waits to stage another in its place. What it staged for that very step is no older one."""
        want = self.wants.get(image.rank)
        return want is not None and want.image == image.image and image.step < want.step

    def is_needed(self, occupant: Occupant) -> bool:
        """Whether something here relies on a shared image, or may at any moment."""
        return occupant.shared and (self.may_be_named(occupant) or bool(self.users(occupant.image)))

    def at(self, slot: int) -> Occupant | None:
        """What is in a slot."""
        known = self.slots.get(slot)
        return known.occupant if known is not None else None

    def newest_whole(self) -> CheckpointId | None:
        """The step that stays, whatever is wanted."""
        return max((c for c, s in self.steps.items() if s.whole and s.wanted), default=None)


@dataclass(frozen=True, slots=True)
class SlotView:
    """One slot, for status. A free slot has no image."""

    slot: int
    rank: int | None
    state: str = "free"
    generation: int = 0
    image: ImageId | None = None
    record: ImageRecord | None = None
    header: ImageHeader | None = None
    pins: int = 0
    flushes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TierView:
    """One tier as a node sees it, for status: images waiting and running."""

    name: str
    lagging: bool
    degraded: Error | None
    waiting: int
    running: int


def slot_view(number: int, slot: Slot) -> SlotView:
    """A slot as status shows it."""
    o = slot.occupant
    if o is None:
        return SlotView(number, slot.rank)
    flushes = {t: f.value for t, f in sorted(o.flushes.items())}
    return SlotView(number, slot.rank, o.state.value, o.generation, o.image, o.record, o.header, o.pins, flushes)


def tier_view(state: NodeState, name: str) -> TierView:
    """A tier as status shows it."""
    flushes = [o.flushes[name] for o in state.occupants() if name in o.flushes]
    tier = state.tiers[name]
    waiting, running = flushes.count(Flush.WAITING), sum(f in RUNNING for f in flushes)
    return TierView(name, tier.lagging, tier.degraded, waiting, running)
