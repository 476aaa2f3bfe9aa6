"""An image on a tier, proven block by block without holding it whole."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import TypeVar

from holdfast.errors import CorruptError, HoldfastError
from holdfast.format.checksum import BLOCK_BYTES, block_count, combine, crc64nvme
from holdfast.format.header import parse_header
from holdfast.model.image import ImageHeader, ImageLayout
from holdfast.tiers.contract import Tier

Progress = Callable[[int], None]
"""Called with the number of bytes just done; possibly from several threads."""
_WORD_BYTES = 8
T = TypeVar("T")


def no_progress(n_bytes: int) -> None:
    """Tell nobody."""


def aligned_buffer(size_bytes: int) -> memoryview:
    """A buffer at a page boundary, so that a tier can read into it past the page cache. Make one and reuse it."""
    return memoryview(mmap.mmap(-1, size_bytes))


class BlockTable:
    """The checksums of an image's blocks, proven by the table's own. Threads: any, it never changes.

    Raises: CorruptError when the table was damaged or never sealed.
    """

    def __init__(self, table: memoryview, layout: ImageLayout) -> None:
        n, last = block_count(layout.table_start), len(table) - _WORD_BYTES
        if len(table) != layout.size_bytes - layout.table_start or n * _WORD_BYTES > last:
            raise CorruptError(f"no block table of {layout.table_start} bytes has {len(table)} bytes")
        if crc64nvme(table[:last]) != int.from_bytes(table[last:], "little"):
            raise CorruptError("the block table does not match its checksum")
        words = table[: n * _WORD_BYTES]
        self._words = [int.from_bytes(words[i : i + _WORD_BYTES], "little") for i in range(0, len(words), _WORD_BYTES)]
        self._stop = layout.table_start
        self._table_crc, self._table_bytes = crc64nvme(table), len(table)

    def check(self, offset: int, data: memoryview) -> None:
        """Prove whole blocks: `data` begins at a block border and ends at one or at the table.

        Raises: CorruptError naming the first bad block.
        """
        for at in range(0, len(data), BLOCK_BYTES):
            start, stop = offset + at, min(offset + at + BLOCK_BYTES, self._stop)
            if crc64nvme(data[at : at + stop - start]) != self._words[start // BLOCK_BYTES]:
                block = start // BLOCK_BYTES
                raise CorruptError(f"bytes {start} to {stop} (block {block}) do not match their checksum")

    @property
    def whole_crc64nvme(self) -> int:
        """The checksum of the whole image, if every block is as the table says."""
        crc = 0
        for block, word in enumerate(self._words):
            start = block * BLOCK_BYTES
            crc = combine(crc, word, min(start + BLOCK_BYTES, self._stop) - start)
        return combine(crc, self._table_crc, self._table_bytes)


def read_header(tier: Tier, key: str, size_bytes: int) -> ImageHeader:
    """What an image on a tier says of itself.

    Raises: NotFoundError, CorruptError, FormatVersionError, TierError; all naming tier and key.
    """

    def read(offset: int, n_bytes: int) -> bytes:
        out = bytearray(n_bytes)
        tier.read_into(key, offset, memoryview(out))
        return bytes(out)

    return located(tier, key, lambda: parse_header(read, size_bytes))


def read_table(tier: Tier, key: str, layout: ImageLayout) -> BlockTable:
    """The block table of an image on a tier. Raises: as `read_header`."""
    out = memoryview(bytearray(layout.size_bytes - layout.table_start))
    tier.read_into(key, layout.table_start, out)
    return located(tier, key, lambda: BlockTable(out, layout))


def located(tier: Tier, key: str, call: Callable[[], T]) -> T:
    """`call()`, its errors naming tier and key."""
    try:
        return call()
    except HoldfastError as e:
        e.tier, e.key = e.tier or tier.name, e.key or key
        raise
