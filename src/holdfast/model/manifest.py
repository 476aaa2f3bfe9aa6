"""The manifest: the durable list of a checkpoint's images and tensors. A pure function of the images it names."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.model.identity import CheckpointId
from holdfast.model.image import ImageRecord
from holdfast.model.notes import Notes
from holdfast.model.rect import Rect


@dataclass(frozen=True, slots=True)
class Chunk:
    """Which rectangle of a tensor which image holds. `image` indexes `Manifest.images`.

    Where the bytes stand inside the image is read from the image's own header, never from here.
    """

    image: int
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def rect(self) -> Rect:
        return Rect(self.offsets, self.lengths)


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One global tensor: its shape, true dtype and who holds what."""

    fqn: str
    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[Chunk, ...]
    owner_rank: int | None = None
    alias_of: str | None = None


@dataclass(frozen=True, slots=True)
class ManifestSummary:
    """What a listing keeps of a manifest, for thousands of them: which images make up the checkpoint."""

    id: CheckpointId
    images: tuple[ImageRecord, ...]
    notes: Notes | None = None

    @property
    def size_bytes(self) -> int:
        return sum(i.size_bytes for i in self.images)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A checkpoint. Contains nothing of a coordinator, its host or its clock: two coordinators write the same bytes."""

    format_version: int
    run: str
    id: CheckpointId
    world_size: int
    structure: str
    images: tuple[ImageRecord, ...]
    tensors: tuple[TensorRecord, ...]
    plain: bytes | None
    """Rank 0's plain values (the bytes of its plain entry without slack) when small enough to stand inline."""
    notes: Notes | None = None
    """As rank 0's image has them; None in images from before there were any."""

    @property
    def size_bytes(self) -> int:
        return sum(i.size_bytes for i in self.images)
