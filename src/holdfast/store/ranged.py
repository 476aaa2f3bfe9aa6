"""An image on a tier of which only what is asked for is read: whole blocks, each proven before it is used."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial

from holdfast.errors import HoldfastError, NotFoundError
from holdfast.format import names
from holdfast.format.checksum import BLOCK_BYTES
from holdfast.format.image import plain_of
from holdfast.model.identity import ImageId
from holdfast.model.image import ImageLayout, ImageRecord
from holdfast.store.blocks import Progress, located, no_progress, open_image
from holdfast.tiers.contract import Buffer, Tier

log = logging.getLogger("holdfast")

KEPT_BLOCKS = 16


class BlockCache:
    """Proven blocks that will be asked for again: at most `limit`, then it takes no more. Threads: any."""

    def __init__(self, limit: int = KEPT_BLOCKS) -> None:
        self._limit = limit
        self._blocks: dict[tuple[ImageId, int], bytes] = {}
        self._lock = threading.Lock()

    def put(self, image: ImageId, block: int, data: Buffer) -> None:
        with self._lock:
            if len(self._blocks) < self._limit:
                self._blocks[image, block] = bytes(data)

    def take(self, image: ImageId, block: int) -> bytes | None:
        """The block, which is kept no longer; None when it is not here."""
        with self._lock:
            return self._blocks.pop((image, block), None)


class RangedImage:
    """The image of a record, opened: its header is proven, the rest is when it is read. Threads: any.

    Args:
        nearer: tiers that may hold it, too, nearest first. What cannot be had from one, or proves bad there, is read
            from the next; `tier` comes last.

    Raises: what `tier` raises: NotFoundError, TierError; CorruptError, FormatVersionError: it is not the image
        recorded, or damaged.
    """

    def __init__(
        self,
        tier: Tier,
        record: ImageRecord,
        *,
        nearer: Sequence[Tier] = (),
        cache: BlockCache | None = None,
        progress: Progress = no_progress,
    ) -> None:
        self.record = record
        self._tier, self._key = tier, names.image_key(record.id)
        self._nearer = tuple(nearer)
        self._cache = BlockCache(0) if cache is None else cache
        self._progress = progress
        self._head = bytearray()
        self._from_nearest(self._open)

    def _from_nearest(self, read: Callable[[Tier], None]) -> None:
        for near in self._nearer:
            try:
                return read(near)
            except NotFoundError:  # nor will it have it another time: what has left memory does not come back
                self._nearer = tuple(t for t in self._nearer if t is not near)
            except HoldfastError as e:
                log.warning("%s on tier %s: %s; it is read from the next tier", self.record.id, near.name, e.message)
        return located(self._tier, self._key, lambda: read(self._tier))

    def _open(self, tier: Tier) -> None:
        self._head = bytearray()
        front, table = partial(self._from_head, tier), partial(self._read_table, tier)
        self.header, self._table = open_image(self.record, front, table)
        head = memoryview(self._head)[: self.header.layout.table_start]
        self._table.check(0, head)
        for block in range(-(-len(head) // BLOCK_BYTES)):
            self._cache.put(self.record.id, block, head[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES])
        self._head = bytearray()

    def _read_table(self, tier: Tier, layout: ImageLayout) -> Buffer:
        table = memoryview(bytearray(layout.size_bytes - layout.table_start))
        self._read(tier, layout.table_start, table)
        return table

    def _from_head(self, tier: Tier, offset: int, n_bytes: int) -> Buffer:
        """A range near the front, read in whole blocks: they are proven once the table is there."""
        stop = min(-(-(offset + n_bytes) // BLOCK_BYTES) * BLOCK_BYTES, self.record.size_bytes)
        begin = len(self._head)
        if stop > begin:
            more = memoryview(bytearray(stop - begin))
            self._read(tier, begin, more)
            self._head += more
        return memoryview(self._head)[offset : offset + n_bytes]

    def stop_of(self, block: int) -> int:
        """Where a block ends in the image."""
        return min((block + 1) * BLOCK_BYTES, self.header.layout.table_start)

    def read(self, first: int, buffer: Buffer, *, keep: frozenset[int] = frozenset()) -> None:
        """Fill `buffer` with whole blocks from block `first` on, all of them proven on return.

        Args:
            keep: blocks that will be asked for once more.

        Raises: as the class.
        """
        self._from_nearest(lambda tier: self._fill(tier, first, buffer))
        for block in keep:
            at = (block - first) * BLOCK_BYTES
            if 0 <= at < len(buffer):
                self._cache.put(self.record.id, block, buffer[at : at + BLOCK_BYTES])

    def _fill(self, tier: Tier, first: int, buffer: Buffer) -> None:
        """Blocks that are kept are copied, what stands between them is read in one go."""
        begin = 0
        for at in range(0, len(buffer), BLOCK_BYTES):
            kept = self._cache.take(self.record.id, first + at // BLOCK_BYTES)
            if kept is not None:
                self._read_proven(tier, first, buffer, begin, at)
                begin = at + len(kept)
                buffer[at:begin] = kept
        self._read_proven(tier, first, buffer, begin, len(buffer))

    def _read_proven(self, tier: Tier, first: int, buffer: Buffer, begin: int, end: int) -> None:
        if end > begin:
            offset = first * BLOCK_BYTES + begin
            self._read(tier, offset, buffer[begin:end])
            self._table.check(offset, buffer[begin:end])

    def _read(self, tier: Tier, offset: int, buffer: Buffer) -> None:
        tier.read_into(self._key, offset, buffer, cached=True)
        self._progress(len(buffer))

    def plain(self) -> bytes:
        """The plain values."""
        layout = self.header.layout
        first = layout.plain_start // BLOCK_BYTES
        last = (layout.plain_start + layout.plain_capacity_bytes - 1) // BLOCK_BYTES
        buffer = memoryview(bytearray(self.stop_of(last) - first * BLOCK_BYTES))
        self.read(first, buffer, keep=frozenset({first, last}))
        at = layout.plain_start - first * BLOCK_BYTES
        return located(self._tier, self._key, lambda: plain_of(buffer[at : at + layout.plain_capacity_bytes]))
