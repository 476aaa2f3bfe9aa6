"""What node machines tell the run machine."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.lifecycle.events.both import Error, RankAt, RankGaveUp, RankGone
from holdfast.model.identity import CheckpointId, ImageId
from holdfast.model.image import ImageHeader, ImageRecord


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
    """A rank staged an image; its checksum is still to come.

    `committed` are tiers that had its step once; `relies_on` older images that complete the rank's part of the step.
    """

    node: str
    image: ImageId
    image_count: int
    world_size: int
    due: frozenset[str]
    committed: frozenset[str] = frozenset()
    relies_on: tuple[ImageId, ...] = ()
    timed: frozenset[str] = frozenset()


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
