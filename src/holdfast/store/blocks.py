"""An image on a tier, proven block by block without holding it whole."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import TypeVar

from holdfast.errors import CorruptError, HoldfastError
from holdfast.format.blocks import BlockTable
from holdfast.format.header import Read, parse_header
from holdfast.model.image import ImageHeader, ImageLayout, ImageRecord
from holdfast.tiers.contract import Buffer, Tier

Progress = Callable[[int], None]
"""Called with the number of bytes just done; possibly from several threads."""
T = TypeVar("T")


def no_progress(n_bytes: int) -> None:
    """Tell nobody."""


def aligned_buffer(size_bytes: int) -> memoryview:
    """A buffer at a page boundary, so that a tier can read into it past the page cache. Make one and reuse it."""
    return memoryview(mmap.mmap(-1, size_bytes))


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


def open_image(
    record: ImageRecord, front: Read, table: Callable[[ImageLayout], Buffer]
) -> tuple[ImageHeader, BlockTable]:
    """Header and block table of the image of a record, once each was had: `front` reads ranges near its beginning.

    Raises: CorruptError, FormatVersionError: it is not the image recorded, or damaged. What the two raise.
    """
    header = parse_header(front, record.size_bytes)
    if header.id != record.id:
        raise CorruptError(f"the header says {header.id}")
    blocks = BlockTable(table(header.layout), header.layout)
    if blocks.whole_crc64nvme != record.crc64nvme:
        raise CorruptError(f"the image is not the one recorded with checksum {record.crc64nvme:016x}")
    return header, blocks


def located(tier: Tier, key: str, call: Callable[[], T]) -> T:
    """`call()`, its errors naming tier and key."""
    try:
        return call()
    except HoldfastError as e:
        e.tier, e.key = e.tier or tier.name, e.key or key
        raise
