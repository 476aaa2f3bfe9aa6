"""Events of a node: what trainers do with slots, and readers; answers to the actions of the node machine."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.lifecycle.events.both import Error, RankAt, RankGaveUp, RankGone, Reconfigured, TimerFired
from holdfast.lifecycle.events.from_run import FromRun
from holdfast.model.identity import ImageId
from holdfast.model.image import ImageHeader, ImageRecord


# Trainers and readers ------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Dealt:
    """A slot (free or occupied) counts among those of a rank from now on, for images of this number."""

    slot: int
    rank: int
    image: int = 0


@dataclass(frozen=True, slots=True)
class Undealt:
    """A slot no longer counts among those of any rank; if it is free, it may be removed."""

    slot: int


@dataclass(frozen=True, slots=True)
class Staged:
    """A trainer finished filling a slot; `generation` names this filling. `due` are tier names, memory included.

    `relies_on`: older images that complete the rank's part of the step.
    """

    slot: int
    generation: int
    image: ImageId
    image_count: int
    world_size: int
    due: frozenset[str]
    size_bytes: int
    relies_on: tuple[ImageId, ...] = ()
    timed: frozenset[str] = frozenset()
    """Those of `due` that are due by time alone."""


@dataclass(frozen=True, slots=True)
class Adopted:
    """A new agent found a held slot. Its bytes count only once verified; `committed` are tiers its page names so."""

    slot: int
    generation: int
    image: ImageId
    image_count: int
    world_size: int
    due: frozenset[str]
    size_bytes: int
    committed: frozenset[str] = frozenset()
    relies_on: tuple[ImageId, ...] = ()
    timed: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Fetched:
    """A load brought an image into a slot, verified it and holds it; `copies` are the tiers that have it committed.

    `pins` are the readers it has from the start, as if `Pinned` that often: without one it may be freed at once.
    """

    slot: int
    generation: int
    record: ImageRecord
    header: ImageHeader
    copies: frozenset[str]
    pins: int = 0


@dataclass(frozen=True, slots=True)
class OwnerGone:
    """The process that was filling this slot is gone; what it wrote is no image."""

    slot: int
    generation: int


@dataclass(frozen=True, slots=True)
class SlotWanted:
    """A rank waits in `save` for a slot, for its image of this number."""

    rank: int
    step: int
    image: int = 0


@dataclass(frozen=True, slots=True)
class SlotWantOver:
    """A rank no longer waits: it got a slot, or gave up."""

    rank: int


@dataclass(frozen=True, slots=True)
class RoomWanted:
    """A load needs memory for what it fetches: the oldest step with nothing left to flush yields."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """A reader (load, peer) needs the bytes of a slot; pins are counted."""

    slot: int


@dataclass(frozen=True, slots=True)
class Unpinned:
    """A reader is done with a slot."""

    slot: int


@dataclass(frozen=True, slots=True)
class FoundBad:
    """A reader found that a held image contradicts its checksum."""

    slot: int
    error: Error


# Answers -------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Sealed:
    """`Seal` is done: block table filled, whole-image checksum known."""

    slot: int
    record: ImageRecord
    header: ImageHeader


@dataclass(frozen=True, slots=True)
class SealFailed:
    """What a trainer staged is no image (its header does not parse, its identity contradicts the page)."""

    slot: int
    error: Error


@dataclass(frozen=True, slots=True)
class Verified:
    """`Verify` is done: the bytes agree with their block table."""

    slot: int
    record: ImageRecord
    header: ImageHeader


@dataclass(frozen=True, slots=True)
class VerifyFailed:
    """An adopted slot contradicts its block table."""

    slot: int
    error: Error


@dataclass(frozen=True, slots=True)
class Uploaded:
    """`Upload` is done: the image stands on the tier, whole and durable (also when it already stood there)."""

    tier: str
    slot: int


@dataclass(frozen=True, slots=True)
class UploadFailed:
    """`Upload` failed for good: retries are exhausted or cannot help."""

    tier: str
    slot: int
    error: Error


NodeEvent = (
    FromRun
    | TimerFired
    | Reconfigured
    | RankAt
    | RankGaveUp
    | RankGone
    | Dealt
    | Undealt
    | Staged
    | Adopted
    | Fetched
    | OwnerGone
    | SlotWanted
    | SlotWantOver
    | RoomWanted
    | Pinned
    | Unpinned
    | FoundBad
    | Sealed
    | SealFailed
    | Verified
    | VerifyFailed
    | Uploaded
    | UploadFailed
)
