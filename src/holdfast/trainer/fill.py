"""Copies out of images and proves them in the same pass, block by block on several cores: memory is read once.

What is proven here is copied right after its checksum, so a bad block shows when others are in the live state already.
The caller tells all ranks and takes another copy, which fills the state anew.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from holdfast.errors import CorruptError
from holdfast.format.checksum import BLOCK_BYTES, block_count
from holdfast.format.image import check_block
from holdfast.trainer.move import on_threads
from holdfast.trainer.saved import Source


@dataclass(frozen=True, slots=True)
class Segment:
    """Bytes of an image and the address of the tensor memory they belong to."""

    source: int
    start: int
    n_bytes: int
    to: int


@dataclass(frozen=True, slots=True)
class _Work:
    source: int
    block: int
    moves: list[tuple[int, int, int]]
    """(address in the tensor, offset in the image, bytes), as `memmove` takes them."""


def fill(
    sources: Sequence[Source], segments: Iterable[Segment], *, prove: Collection[int] = (), threads: int = 1
) -> dict[int, CorruptError]:
    """Copy every segment, and check every block of the images in `prove` on the way.

    Returns: of each image found bad its first error, by source; what was copied of it is worth nothing.
    """
    work = iter(_in_order(sources, segments, prove))
    addresses = [_address(source.buffer) for source in sources]
    bad: dict[int, CorruptError] = {}

    def drain() -> None:
        for item in work:  # the next item of a list's iterator goes to one thread
            source = sources[item.source]
            if item.source in prove and item.source not in bad:
                try:
                    check_block(source.buffer, source.header.layout, item.block)
                except CorruptError as e:
                    bad.setdefault(item.source, e)
            for to, start, n_bytes in item.moves if item.source not in bad else ():
                ctypes.memmove(to, addresses[item.source] + start, n_bytes)

    on_threads(drain, threads)
    return bad


def _in_order(sources: Sequence[Source], segments: Iterable[Segment], prove: Collection[int]) -> list[_Work]:
    """Segments cut at the borders of blocks; of images to prove also the blocks that nobody copies from."""
    work: dict[tuple[int, int], _Work] = {}
    for i in sorted(prove):
        for block in range(block_count(sources[i].header.layout.table_start)):
            work[i, block] = _Work(i, block, [])
    for segment in segments:
        for block, start, n_bytes in cut(segment.start, segment.n_bytes):
            item = work.setdefault((segment.source, block), _Work(segment.source, block, []))
            item.moves.append((segment.to + start - segment.start, start, n_bytes))
    return [work[key] for key in sorted(work)]


def cut(start: int, n_bytes: int) -> Iterator[tuple[int, int, int]]:
    """(block, start, length) of a range, per block it touches."""
    stop = start + n_bytes
    while start < stop:
        end = min(stop, start - start % BLOCK_BYTES + BLOCK_BYTES)
        yield start // BLOCK_BYTES, start, end - start
        start = end


def _address(buffer: memoryview) -> int:
    """Where a buffer begins in memory, read-only ones too. The caller keeps it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        return torch.frombuffer(buffer, dtype=torch.uint8).data_ptr()
