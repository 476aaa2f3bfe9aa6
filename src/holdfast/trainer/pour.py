"""Fills tensors from images that stand on a tier, block by block through a few buffers: no image is ever held whole.

Every block is proven before anything is copied out of it. What is no run of bytes in this process's memory (another
device, strides) passes through memory of its own, `_DETOUR_BYTES` at a time, or one tensor if that is larger.
"""

from __future__ import annotations

import ctypes
import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from holdfast.format.checksum import BLOCK_BYTES
from holdfast.model.image import Entry
from holdfast.store.blocks import aligned_buffer
from holdfast.store.ranged import RangedImage
from holdfast.trainer.fill import Segment, cut
from holdfast.trainer.move import on_threads
from holdfast.trainer.values import dtype_of

_RUN_BLOCKS = 4
_DETOUR_BYTES = 64 << 20
THREADS = 4
"""A tier gains from several reads at once, however few cores there are."""


@dataclass(eq=False)
class Detour:
    """Bytes [start, stop) of an entry that cannot be copied straight to where they belong."""

    source: int
    entry: Entry
    start: int
    stop: int
    arrived: Callable[[torch.Tensor], None]
    """Takes the entry's tensor, once these bytes of it are there; the others are undefined, and take no memory."""

    @cached_property
    def tensor(self) -> torch.Tensor:
        return torch.empty(self.entry.piece.lengths, dtype=dtype_of(self.entry.piece.dtype))

    @property
    def n_bytes(self) -> int:
        return self.stop - self.start if self.entry.piece.nbytes else 0

    @property
    def segment(self) -> Segment:
        to = self.tensor.data_ptr() + self.start - self.entry.start
        return Segment(self.source, self.start, self.n_bytes, to)

    def finish(self) -> None:
        """Hand the tensor over and let go of it."""
        self.arrived(self.__dict__.pop("tensor"))


@dataclass
class _Batch:
    """Segments that are copied together, in the order of the images; the detours among them end with it."""

    segments: list[Segment] = field(default_factory=list)
    detours: list[Detour] = field(default_factory=list)
    detour_bytes: int = 0

    @property
    def last(self) -> tuple[int, int]:
        """(source, block) where it ends: the next batch may begin in the same."""
        end = max(self.segments, key=lambda s: (s.source, s.start + s.n_bytes))
        return end.source, (end.start + max(end.n_bytes, 1) - 1) // BLOCK_BYTES


def pour(
    images: Sequence[RangedImage], segments: Sequence[Segment], detours: Sequence[Detour], *, threads: int = THREADS
) -> None:
    """Copy every segment out of its image, and have every detour arrive.

    Raises: CorruptError, NotFoundError, TierError of the first block that cannot be had; what is filled by then is
        undefined. RuntimeError: torch did not take what arrived.
    """
    buffers: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
    for _ in range(threads):
        buffers.put(aligned_buffer(_RUN_BLOCKS * BLOCK_BYTES))
    for batch in _batches(segments, detours):
        _copy(images, batch, buffers, threads)
        for detour in batch.detours:
            detour.finish()


def _batches(segments: Sequence[Segment], detours: Sequence[Detour]) -> Iterator[_Batch]:
    work: list[Segment | Detour] = [*(s for s in segments if s.n_bytes), *detours]
    work.sort(key=lambda w: (w.source, w.start))
    batch = _Batch()
    for item in work:
        if isinstance(item, Segment):
            batch.segments.append(item)
            continue
        n_bytes = item.n_bytes
        if batch.detours and batch.detour_bytes + n_bytes > _DETOUR_BYTES:
            yield batch
            batch = _Batch()
        batch.detours.append(item)
        batch.detour_bytes += n_bytes
        if n_bytes:
            batch.segments.append(item.segment)
    yield batch


def _copy(images: Sequence[RangedImage], batch: _Batch, buffers: queue.SimpleQueue[memoryview], threads: int) -> None:
    if not batch.segments:
        return
    moves: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for s in batch.segments:
        for block, start, n_bytes in cut(s.start, s.n_bytes):
            at = start - block * BLOCK_BYTES
            moves.setdefault((s.source, block), []).append((s.to + start - s.start, at, n_bytes))
    runs = iter(list(_runs(sorted(moves))))
    shared = batch.last

    def drain() -> None:
        buffer = buffers.get()
        address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        try:
            for source, first, count in runs:  # the next item of a list's iterator goes to one thread
                image = images[source]
                n_bytes = image.stop_of(first + count - 1) - first * BLOCK_BYTES
                keep = frozenset({shared[1]} if shared[0] == source else ())
                image.read(first, buffer[:n_bytes], keep=keep)
                for i in range(count):
                    for to, at, length in moves[source, first + i]:
                        ctypes.memmove(to, address + i * BLOCK_BYTES + at, length)
        finally:
            buffers.put(buffer)

    on_threads(drain, threads)


def _runs(blocks: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """(source, first block, how many) of blocks that are read in one go."""
    begin = 0
    for i, (source, block) in enumerate(blocks):
        following = blocks[i + 1] if i + 1 < len(blocks) else None
        if following != (source, block + 1) or i + 1 - begin == _RUN_BLOCKS:
            yield source, blocks[begin][1], i + 1 - begin
            begin = i + 1
