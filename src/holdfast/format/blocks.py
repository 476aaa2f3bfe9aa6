"""The block table of an image, read: what each block of 4 MiB before it, and so the whole, has to hash to."""

from __future__ import annotations

from holdfast.errors import CorruptError
from holdfast.format.checksum import BLOCK_BYTES, block_count, combine, crc64nvme
from holdfast.model.image import ImageLayout

WORD_BYTES = 8


class BlockTable:
    """The checksums of an image's blocks, proven by the table's own. Threads: any, it never changes.

    Raises: CorruptError when the table was damaged or never sealed.
    """

    def __init__(self, table: memoryview, layout: ImageLayout) -> None:
        n, last = block_count(layout.table_start), len(table) - WORD_BYTES
        if len(table) != layout.size_bytes - layout.table_start or n * WORD_BYTES > last:
            raise CorruptError(f"no block table of {layout.table_start} bytes has {len(table)} bytes")
        if crc64nvme(table[:last]) != int.from_bytes(table[last:], "little"):
            raise CorruptError("the block table does not match its checksum")
        starts = range(0, n * WORD_BYTES, WORD_BYTES)
        self.words = tuple(int.from_bytes(table[at : at + WORD_BYTES], "little") for at in starts)
        self._stop = layout.table_start
        self._table_crc, self._table_bytes = crc64nvme(table), len(table)

    def check(self, offset: int, data: memoryview) -> None:
        """Prove whole blocks: `data` begins at a block border and ends at one or at the table.

        Raises: CorruptError naming the first bad block.
        """
        for at in range(0, len(data), BLOCK_BYTES):
            start, stop = offset + at, min(offset + at + BLOCK_BYTES, self._stop)
            block = start // BLOCK_BYTES
            prove_block(data[at : at + stop - start], block, self.words[block])

    @property
    def whole_crc64nvme(self) -> int:
        """The checksum of the whole image, if every block is as the table says."""
        crc = 0
        for block, word in enumerate(self.words):
            start = block * BLOCK_BYTES
            crc = combine(crc, word, min(start + BLOCK_BYTES, self._stop) - start)
        return combine(crc, self._table_crc, self._table_bytes)


def prove_block(data: memoryview, block: int, word: int) -> None:
    """Compare a whole block with its word in the table. Raises: CorruptError."""
    if crc64nvme(data) != word:
        start = block * BLOCK_BYTES
        raise CorruptError(f"bytes {start} to {start + len(data)} (block {block}) do not match their checksum")
