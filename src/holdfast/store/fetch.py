"""Fetch: an image from a tier into memory, every block proven as it arrives, every byte read once."""

from __future__ import annotations

from concurrent.futures import Executor

from holdfast.format import names
from holdfast.format.checksum import BLOCK_BYTES
from holdfast.model.image import ImageHeader, ImageLayout, ImageRecord
from holdfast.store.blocks import Progress, located, no_progress, open_image
from holdfast.store.parts import run_parts
from holdfast.tiers.contract import Buffer, Tier


def fetch_image(
    tier: Tier,
    record: ImageRecord,
    buffer: Buffer,
    pool: Executor,
    *,
    progress: Progress = no_progress,
) -> ImageHeader:
    """Fill `buffer` (exactly the image's length) with an image proven to be the one recorded.

    The header is read first, then the block table, then the rest in parts by `pool`, each part checked in the thread
    that read it. On return, also by an exception, nothing writes into `buffer` any more. Must not run on `pool`.

    Raises: NotFoundError, TierError; CorruptError naming the first bad block; `buffer` is worth nothing then.
    """
    key = names.image_key(record.id)
    if len(buffer) != record.size_bytes:
        raise ValueError(f"a buffer of {len(buffer)} bytes for an image of {record.size_bytes}")
    return located(tier, key, lambda: _Fetch(tier, key, record, buffer, progress).run(pool))


class _Fetch:
    def __init__(self, tier: Tier, key: str, record: ImageRecord, buffer: Buffer, progress: Progress) -> None:
        self._tier, self._key, self._record = tier, key, record
        self._buffer, self._progress = buffer, progress
        part_bytes = tier.capabilities.part_bytes
        self._part_bytes = max(BLOCK_BYTES, part_bytes - part_bytes % BLOCK_BYTES)
        self._filled = 0

    def run(self, pool: Executor) -> ImageHeader:
        header, table = open_image(self._record, self._head, self._table)
        start = header.layout.table_start

        def part(begin: int) -> None:
            end = min(begin + self._part_bytes, start)
            self._read(max(begin, self._filled), end)
            table.check(begin, self._buffer[begin:end])

        run_parts(pool, part, range(0, start, self._part_bytes))
        return header

    def _head(self, offset: int, n_bytes: int) -> Buffer:
        """A range near the front; what is read to get there stays in the buffer."""
        end = min(offset + n_bytes, len(self._buffer))
        if end > self._filled:
            more = min(max(end, BLOCK_BYTES), len(self._buffer))
            self._read(self._filled, more)
            self._filled = more
        return self._buffer[offset:end]

    def _table(self, layout: ImageLayout) -> Buffer:
        self._read(max(layout.table_start, self._filled), layout.size_bytes)
        return self._buffer[layout.table_start : layout.size_bytes]

    def _read(self, begin: int, end: int) -> None:
        if end > begin:
            self._tier.read_into(self._key, begin, self._buffer[begin:end], cached=True)
            self._progress(end - begin)
