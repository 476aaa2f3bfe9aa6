"""The image: what a rank contributes to a checkpoint, laid down once, the same bytes on every tier.

`ImageLayout` is the plan before any byte exists; `ImageHeader` is what a finished image says of itself.
Offsets called `start` are bytes from the beginning of the image (not of the safetensors data section).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from holdfast.model.identity import ImageId
from holdfast.model.rect import Rect


@dataclass(frozen=True, slots=True)
class Piece:
    """A hyper-rectangle of one global tensor, before it has a place.

    `offsets`, `lengths` and `shape` have one item per dimension of the global tensor; a 0-dim tensor has none.
    `dtype` is the torch name without the prefix ("bfloat16", "float8_e4m3fn", "complex128").
    `itemsize` is bytes per element of that dtype.
    """

    fqn: str
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: str
    itemsize: int
    owner_rank: int | None = None
    """Set for values marked `per_rank`: this piece belongs to that rank alone."""
    form: str | None = None
    """Set where a tensor of the user's is stored as several: how they make it, as tagged JSON (docs/format.md)."""

    @property
    def rect(self) -> Rect:
        return Rect(self.offsets, self.lengths)

    @property
    def is_whole(self) -> bool:
        return self.lengths == self.shape

    @property
    def nbytes(self) -> int:
        return self.itemsize * math.prod(self.lengths)


@dataclass(frozen=True, slots=True)
class Entry:
    """A piece with its place in an image: `start` bytes from the beginning of the image."""

    name: str
    piece: Piece
    start: int

    @property
    def stop(self) -> int:
        return self.start + self.piece.nbytes


@dataclass(frozen=True, slots=True)
class ImageLayout:
    """Where everything of one image stands.

    Byte order: header (`header_bytes`, a multiple of 4096) | entries, each at a multiple of 64 | plain values
    (`plain_start`, `plain_capacity_bytes`) | block table (`table_start`, a multiple of 4096) up to `size_bytes`.
    """

    entries: tuple[Entry, ...]
    aliases: tuple[tuple[str, str], ...]
    """(alias fqn, fqn whose bytes it shares), for tied tensors."""
    header_bytes: int
    plain_start: int
    plain_capacity_bytes: int
    table_start: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What an image says of itself: identity, place among the others, entries."""

    format_version: int
    run: str
    id: ImageId
    world_size: int
    image_count: int
    """How many images this rank contributes to the step."""
    structure: str
    """Hex digest of the whole structure (names, shapes, dtypes) the image was laid out from."""
    relies_on: tuple[ImageId, ...]
    layout: ImageLayout

    @property
    def size_bytes(self) -> int:
        return self.layout.size_bytes


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image as a receipt or a manifest names it: identity, length and checksum of the whole image."""

    id: ImageId
    size_bytes: int
    crc64nvme: int
