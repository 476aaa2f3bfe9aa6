"""What can happen to the two machines. Events are facts: whoever performs the actions reports them, in the order seen.

Time is an event too: `TimerFired`. Errors travel as `HoldfastError.to_dict()`. Node and run machine speak to each
other by events carried in `ToRun` and `ToNodes` (actions.py); per sender they must arrive in order, exactly once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from holdfast.model.identity import CheckpointId, ImageId, Lineage
from holdfast.model.image import ImageHeader, ImageRecord
from holdfast.model.place import TierRule

Error = Mapping[str, Any]


# To both machines -------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class TimerFired:
    """A timer that a `StartTimer` of this machine set has run out."""

    timer: str


@dataclass(frozen=True, slots=True)
class Reconfigured:
    """A new launch brought other tiers; flushes to tiers that are gone are cancelled."""

    rules: tuple[TierRule, ...]


@dataclass(frozen=True, slots=True)
class RankAt:
    """A rank's page shows this (attempt, step). To the node machine, after `Staged` for all it staged before."""

    rank: int
    at: CheckpointId


@dataclass(frozen=True, slots=True)
class RankGaveUp:
    """A rank found no slot in time and went on without this step. To the node machine, which passes it on."""

    rank: int
    checkpoint: CheckpointId


@dataclass(frozen=True, slots=True)
class RankGone:
    """The process of a rank is gone; it will stage nothing more. To the node machine, which passes it on."""

    rank: int


# To the node machine: slots and trainers --------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Dealt:
    """A slot (free or occupied) counts among those of a rank from now on."""

    slot: int
    rank: int


@dataclass(frozen=True, slots=True)
class Undealt:
    """A slot no longer counts among those of any rank; if it is free, it may be removed."""

    slot: int


@dataclass(frozen=True, slots=True)
class Staged:
    """A trainer finished filling a slot; `generation` names this filling. `due` are tier names, memory included."""

    slot: int
    generation: int
    image: ImageId
    image_count: int
    world_size: int
    due: frozenset[str]
    size_bytes: int


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
    """A rank waits in `save` for a slot."""

    rank: int
    step: int


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


# To the node machine: answers to its actions ----------------------------------------------------------------
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


# To the node machine: from the run machine ------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Resend:
    """The run machine is new, or this agent is: what was said before may be lost, so say everything again."""


@dataclass(frozen=True, slots=True)
class LineageChanged:
    """An attempt was claimed: steps outside the lineage are abandoned.

    Trainers are told of their attempt only when every node has heard of it: before, a node may free what the attempt
    stands on in favour of what it abandons.
    """

    lineage: Lineage


@dataclass(frozen=True, slots=True)
class BecameWhole:
    """All images of the step are verified in memory and cover it."""

    checkpoint: CheckpointId


@dataclass(frozen=True, slots=True)
class InDoubt:
    """Some node says anew what it holds: until it has, the step is not known to be whole."""

    checkpoint: CheckpointId


@dataclass(frozen=True, slots=True)
class Committed:
    """The step's manifest stands on the tier."""

    tier: str
    checkpoint: CheckpointId


@dataclass(frozen=True, slots=True)
class CancelFlush:
    """The step will not be committed on this tier: flushes not begun are cancelled."""

    tier: str
    checkpoint: CheckpointId


@dataclass(frozen=True, slots=True)
class Release:
    """The step is no longer whole in memory: slots are freed as soon as no flush needs them."""

    checkpoint: CheckpointId


@dataclass(frozen=True, slots=True)
class Forget:
    """The step does not exist any more (dropped, failed, pruned, abandoned): cancel its flushes, free its slots."""

    checkpoint: CheckpointId
    reason: str


@dataclass(frozen=True, slots=True)
class Promote:
    """Flush the step to this tier ahead of everything else, due or not."""

    tier: str
    checkpoint: CheckpointId


@dataclass(frozen=True, slots=True)
class FreeAll:
    """The run is over on this node: cancel what has not begun, free every slot."""


# To the run machine: from node machines ---------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class TellsAnew:
    """What this node said before may be out of date; what it holds follows, and then `HasTold`."""

    node: str


@dataclass(frozen=True, slots=True)
class HasTold:
    """This node has said everything it holds."""

    node: str


@dataclass(frozen=True, slots=True)
class ImageStaged:
    """A rank staged an image; its checksum is still to come. `committed` are tiers that had its step once."""

    node: str
    image: ImageId
    image_count: int
    world_size: int
    due: frozenset[str]
    committed: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class MemoryReceipt:
    """An image is whole in the memory of a node."""

    node: str
    record: ImageRecord
    header: ImageHeader


@dataclass(frozen=True, slots=True)
class MemoryGone:
    """A node freed the slot of an image that was whole."""

    node: str
    image: ImageId


@dataclass(frozen=True, slots=True)
class ImageFailed:
    """An image in a node's memory is bad, or never was an image."""

    node: str
    image: ImageId
    error: Error


@dataclass(frozen=True, slots=True)
class FlushBegun:
    """A node began to flush its part of a step to a tier."""

    node: str
    tier: str
    checkpoint: CheckpointId


@dataclass(frozen=True, slots=True)
class TierReceipt:
    """An image is whole on a tier. `record` and `header` only where it was found by listing, after a restart."""

    node: str
    tier: str
    image: ImageId
    record: ImageRecord | None = None
    header: ImageHeader | None = None


@dataclass(frozen=True, slots=True)
class FlushFailed:
    """A node could not flush an image to a tier."""

    node: str
    tier: str
    image: ImageId
    error: Error


@dataclass(frozen=True, slots=True)
class FlushSkipped:
    """A node gave up its part of a step on a lagging tier in favour of a newer step."""

    node: str
    tier: str
    checkpoint: CheckpointId


# To the run machine: from the executor ----------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class AttemptOwned:
    """This run's agents own the highest attempt: just claimed, or found again by a new coordinator.

    To be followed by what stands on each tier: `TierReceipt` for images found without manifest, then `CatalogRead` or
    `CatalogFailed`. Until all tiers are read, no step is dropped for want of an image; nor until each of `nodes` has
    told what it holds (a new coordinator of several nodes names them here and sends each a `Resend`).
    """

    attempt: int
    lineage: Lineage
    nodes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class SupersededBy:
    """A higher attempt of somebody else exists: commit and prune nothing more."""

    attempt: int


@dataclass(frozen=True, slots=True)
class CatalogRead:
    """A tier was listed: what is committed there, and what has begun to be deleted."""

    tier: str
    committed: frozenset[CheckpointId]
    tombstoned: frozenset[CheckpointId]


@dataclass(frozen=True, slots=True)
class CatalogFailed:
    """A tier could not be listed."""

    tier: str
    error: Error


@dataclass(frozen=True, slots=True)
class WholeChecked:
    """`CheckWhole` is done; `error` says where the images do not cover the step."""

    checkpoint: CheckpointId
    error: Error | None = None


@dataclass(frozen=True, slots=True)
class CommitDone:
    """The manifest stands on the tier."""

    tier: str
    checkpoint: CheckpointId


@dataclass(frozen=True, slots=True)
class CommitFailed:
    """The commit failed for good; whether the manifest stands is not known."""

    tier: str
    checkpoint: CheckpointId
    error: Error


@dataclass(frozen=True, slots=True)
class PruneAsked:
    """A person wants these checkpoints gone, everywhere or (`tier`) on one tier."""

    checkpoints: frozenset[CheckpointId]
    tier: str | None = None


@dataclass(frozen=True, slots=True)
class PruneDone:
    """`Prune` or `Sweep` is done."""

    tier: str
    checkpoints: frozenset[CheckpointId]


@dataclass(frozen=True, slots=True)
class PruneFailed:
    """`Prune` or `Sweep` failed; a prune is tried again after the next commit on the tier."""

    tier: str
    checkpoints: frozenset[CheckpointId]
    error: Error


@dataclass(frozen=True, slots=True)
class TierRecovered:
    """A tier that failed works again."""

    tier: str


@dataclass(frozen=True, slots=True)
class LoadBegun:
    """A load reads this checkpoint: retention leaves it alone. Counted."""

    checkpoint: CheckpointId


@dataclass(frozen=True, slots=True)
class LoadEnded:
    """A load of this checkpoint is over."""

    checkpoint: CheckpointId


@dataclass(frozen=True, slots=True)
class TrainersGone:
    """No trainer of the launch lives any more and not all had closed."""


@dataclass(frozen=True, slots=True)
class TrainersBack:
    """A launch attached."""


@dataclass(frozen=True, slots=True)
class CloseAsked:
    """Every rank has closed. Asked again, what failed is tried again."""

    discard: bool = False


@dataclass(frozen=True, slots=True)
class TermSignal:
    """The agent has to end within `grace_s`."""

    grace_s: float


@dataclass(frozen=True, slots=True)
class NodeGone:
    """A node and its memory are lost."""

    node: str


FromRun = (
    Resend | LineageChanged | BecameWhole | InDoubt | Committed | CancelFlush | Release | Forget | Promote | FreeAll
)
FromNode = (
    TellsAnew
    | HasTold
    | ImageStaged
    | MemoryReceipt
    | MemoryGone
    | ImageFailed
    | FlushBegun
    | TierReceipt
    | FlushFailed
    | FlushSkipped
    | RankAt
    | RankGaveUp
    | RankGone
)
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
RunEvent = (
    FromNode
    | TimerFired
    | Reconfigured
    | AttemptOwned
    | SupersededBy
    | CatalogRead
    | CatalogFailed
    | WholeChecked
    | CommitDone
    | CommitFailed
    | PruneAsked
    | PruneDone
    | PruneFailed
    | TierRecovered
    | LoadBegun
    | LoadEnded
    | TrainersGone
    | TrainersBack
    | CloseAsked
    | TermSignal
    | NodeGone
)
