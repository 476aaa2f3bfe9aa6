"""Reads tensors of a checkpoint from a tier, part by part: every byte is proven before it is used."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from holdfast.errors import CorruptError, HoldfastError
from holdfast.format import names
from holdfast.format.checksum import BLOCK_BYTES
from holdfast.model.identity import ImageId
from holdfast.model.image import Entry, ImageRecord
from holdfast.model.manifest import Chunk, Manifest, TensorRecord
from holdfast.model.rect import Rect
from holdfast.store.blocks import Progress, aligned_buffer, no_progress
from holdfast.store.ranged import BlockCache, RangedImage
from holdfast.store.rects import disjoint, parts
from holdfast.store.verify import DAMAGE
from holdfast.tiers.contract import Tier

PART_BYTES = 2 * BLOCK_BYTES
"""The most that one part spans in its image."""
KEPT_BYTES = 6 * BLOCK_BYTES
"""What is kept of what was read: both sides of a part that spans three blocks."""
_IMAGES_KEPT = 64
Bytes = npt.NDArray[np.uint8]
_Key = tuple[str, tuple[int, ...], tuple[int, ...], int | None]


@dataclass(frozen=True, slots=True)
class _Opened:
    """An image whose header is proven, and where in it each piece stands."""

    image: RangedImage
    entries: dict[_Key, Entry]


class Images:
    """Images of one tier, of which small parts are read one after the other.

    Invariant: holds at most KEPT_BYTES of blocks and `_IMAGES_KEPT` headers, and for a moment the head of one more.

    Threads: one.
    """

    def __init__(self, tier: Tier, *, progress: Progress = no_progress) -> None:
        self.tier = tier
        self.progress = progress
        self._opened: OrderedDict[ImageRecord, _Opened] = OrderedDict()
        self._bad: dict[ImageRecord, HoldfastError] = {}
        """Images that were found missing or damaged: they may hold thousands of tensors, and are not read for each."""
        self._blocks: OrderedDict[tuple[ImageId, int], tuple[memoryview, int]] = OrderedDict()
        self._heads = BlockCache()

    def entry(self, record: ImageRecord, tensor: TensorRecord, chunk: Chunk) -> Entry:
        """Where a chunk stands in its image, by the image's own header.

        Raises: CorruptError, NotFoundError, TierError.
        """
        opened = self._open(record)
        entry = opened.entries.get((tensor.fqn, chunk.offsets, chunk.lengths, tensor.owner_rank))
        if entry is None or (entry.piece.shape, entry.piece.dtype) != (tensor.shape, tensor.dtype):
            what = f"header and manifest disagree on {tensor.fqn!r}"
            raise CorruptError(what, tier=self.tier.name, key=names.image_key(record.id), step=record.id.step)
        return entry

    def read(self, record: ImageRecord, start: int, stop: int) -> Bytes:
        """A copy of proven bytes of an image. Raises: CorruptError naming the block; NotFoundError, TierError."""
        return self._read(self._open(record), start, stop)

    def plain(self, record: ImageRecord) -> bytes:
        """The image's plain values, as tagged JSON. Raises: CorruptError, NotFoundError, TierError."""
        return self._open(record).image.plain()

    def _open(self, record: ImageRecord) -> _Opened:
        if record in self._opened:
            self._opened.move_to_end(record)
            return self._opened[record]
        if record in self._bad:
            raise self._bad[record].with_traceback(None)  # else it grows with every tensor of the image
        try:
            opened = self._prove(record)
        except DAMAGE as e:
            e.step = record.id.step
            self._bad[record] = e
            raise
        self._opened[record] = opened
        if len(self._opened) > _IMAGES_KEPT:
            self._opened.popitem(last=False)
        return opened

    def _prove(self, record: ImageRecord) -> _Opened:
        key = names.image_key(record.id)
        size_bytes = self.tier.size(key)
        if size_bytes != record.size_bytes:
            what = f"the image has {size_bytes} bytes, {record.size_bytes} were committed"
            raise CorruptError(what, tier=self.tier.name, key=key)
        image = RangedImage(self.tier, record, cache=self._heads, progress=self._count)
        for number in range(-(-image.header.layout.header_bytes // BLOCK_BYTES)):
            self._block(image, number)  # was read already: small images have no other
        pieces = ((e.piece, e) for e in image.header.layout.entries)
        return _Opened(image, {(p.fqn, p.offsets, p.lengths, p.owner_rank): e for p, e in pieces})

    def _count(self, n_bytes: int) -> None:
        """To whoever wants to know by now."""
        self.progress(n_bytes)

    def _read(self, opened: _Opened, start: int, stop: int) -> Bytes:
        out = np.empty(stop - start, np.uint8)
        for number in range(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES)):
            block, size = self._block(opened.image, number)
            at = number * BLOCK_BYTES
            begin, end = max(start, at), min(stop, at + size)
            out[begin - start : end - start] = np.frombuffer(block[begin - at : end - at], np.uint8)
        return out

    def _block(self, image: RangedImage, number: int) -> tuple[memoryview, int]:
        wanted = image.record.id, number
        if wanted in self._blocks:
            self._blocks.move_to_end(wanted)
            return self._blocks[wanted]
        full = len(self._blocks) * BLOCK_BYTES >= KEPT_BYTES
        buffer = self._blocks.popitem(last=False)[1][0] if full else aligned_buffer(BLOCK_BYTES)
        size = image.stop_of(number) - number * BLOCK_BYTES
        image.read(number, buffer[:size])
        self._blocks[wanted] = buffer, size
        return buffer, size


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a checkpoint on a tier, whoever holds what of it."""

    images: Images
    manifest: Manifest
    record: TensorRecord

    @property
    def rects(self) -> list[tuple[int, Rect]]:
        """Every element once, with the chunk it is read from."""
        return disjoint(c.rect for c in self.record.chunks)

    def image_of(self, chunk: int) -> ImageRecord:
        return self.manifest.images[self.record.chunks[chunk].image]

    def entry_of(self, chunk: int) -> Entry:
        """Raises: as `Images.entry`."""
        return self.images.entry(self.image_of(chunk), self.record, self.record.chunks[chunk])

    def span_bytes(self, chunk: int, rect: Rect) -> int:
        """How many bytes of the image lie between the first and the last byte of the rectangle."""
        first, stop = self.record.chunks[chunk].rect.span(rect)
        return (stop - first) * self.entry_of(chunk).piece.itemsize

    def read(self, chunk: int, rect: Rect) -> Bytes:
        """The bytes of a rectangle that lies in a chunk: one row of `itemsize` bytes per element, in row order."""
        entry, whole = self.entry_of(chunk), self.record.chunks[chunk].rect
        itemsize, (first, stop) = entry.piece.itemsize, whole.span(rect)
        raw = self.images.read(self.image_of(chunk), entry.start + first * itemsize, entry.start + stop * itemsize)
        strides = tuple(itemsize * math.prod(whole.lengths[dim + 1 :]) for dim in range(len(whole.lengths)))
        view: Any = np.lib.stride_tricks.as_strided(raw, (*rect.lengths, itemsize), (*strides, 1), writeable=False)
        return np.ascontiguousarray(view).reshape(-1, itemsize)

    def parts(self) -> Iterator[Bytes]:
        """All elements, once each, in parts. Raises: as `Images.read`."""
        for chunk, rect in self.rects:
            for part in parts(rect, lambda r, c=chunk: self.span_bytes(c, r) <= PART_BYTES):  # type: ignore[misc]
                yield self.read(chunk, part)


def stored_tensor(images: Images, manifest: Manifest, record: TensorRecord) -> StoredTensor:
    """A tensor of the manifest; a tied one is the tensor whose bytes it shares. Raises: CorruptError."""
    fqn = record.alias_of
    shared = (t for t in manifest.tensors if t.fqn == fqn and t.owner_rank is None)
    target = record if fqn is None else next(shared, None)
    if target is None:
        raise CorruptError(f"{record.fqn!r} is said to be the same as {record.alias_of!r}, which is not there")
    return StoredTensor(images, manifest, target)
