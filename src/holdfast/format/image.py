"""The bytes of an image: plain values in, block table sealed and checked. Layout and header have files of their own.

A block is 4 MiB of what stands before the block table. Threads may seal or check different blocks at the same time.
"""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.errors import CapacityError, CorruptError
from holdfast.format.blocks import WORD_BYTES, BlockTable, prove_block
from holdfast.format.checksum import BLOCK_BYTES, Buffer, block_count, crc64nvme
from holdfast.format.header import parse_header
from holdfast.format.layout import Template, lay_out
from holdfast.format.notes import MAX_NOTES_BYTES
from holdfast.model.image import ImageLayout

__all__ = [
    "Template",
    "block_of",
    "block_range",
    "check",
    "check_block",
    "check_table",
    "lay_out",
    "notes_of",
    "parse_header",
    "plain_fits",
    "plain_of",
    "read_notes",
    "read_plain",
    "seal",
    "seal_block",
    "seal_table",
    "table_of",
    "write_notes",
    "write_plain",
]

_LENGTH_BYTES = 8


def plain_fits(layout: ImageLayout, payload_bytes: int) -> bool:
    """Whether plain values of that length have room in the image, with the most that notes may take behind them."""
    return 2 * _LENGTH_BYTES + payload_bytes + MAX_NOTES_BYTES <= layout.plain_capacity_bytes


def write_plain(buffer: Buffer, layout: ImageLayout, payload: Buffer) -> None:
    """Write the plain values: their length, their bytes, zeros to the end.

    Raises:
        CapacityError: they outgrew their room; the image must be laid out anew.
    """
    n = len(payload)
    if _LENGTH_BYTES + n > layout.plain_capacity_bytes:
        raise CapacityError(
            f"plain values of {n} bytes do not fit in {layout.plain_capacity_bytes - _LENGTH_BYTES}",
            hint="lay the image out again for their new size",
        )
    view, start = _bytes(buffer), layout.plain_start
    stop = start + _LENGTH_BYTES + n
    view[start : start + _LENGTH_BYTES] = n.to_bytes(_LENGTH_BYTES, "little")
    view[start + _LENGTH_BYTES : stop] = payload
    end = start + layout.plain_capacity_bytes
    view[stop:end] = bytes(end - stop)


def read_plain(buffer: Buffer, layout: ImageLayout) -> bytes:
    """The plain values' payload.

    Raises:
        CorruptError: the length word is larger than the room.
    """
    return plain_of(_plain_room(buffer, layout))


def plain_of(room: Buffer) -> bytes:
    """The payload of the reserved entry alone. Raises: as `read_plain`."""
    view = _bytes(room)
    return bytes(view[_LENGTH_BYTES : _end_of_plain(view)])


def write_notes(buffer: Buffer, layout: ImageLayout, notes: Buffer) -> None:
    """Write notes behind the plain values, which are there: their length, then their bytes.

    Raises:
        CapacityError: there is no room for them.
    """
    plain, n = _plain_room(buffer, layout), len(notes)
    room = plain[_end_of_plain(plain) :]
    if len(room) < _LENGTH_BYTES + n:
        raise CapacityError(f"notes of {n} bytes do not fit in {len(room)}", hint="lay the image out again")
    room[:_LENGTH_BYTES] = n.to_bytes(_LENGTH_BYTES, "little")
    room[_LENGTH_BYTES : _LENGTH_BYTES + n] = notes


def read_notes(buffer: Buffer, layout: ImageLayout) -> bytes:
    """The bytes of the notes; empty where there are none, as in images from before there were any.

    Raises:
        CorruptError: a length word is larger than its room.
    """
    return notes_of(_plain_room(buffer, layout))


def notes_of(room: Buffer) -> bytes:
    """The bytes of the notes in the reserved entry alone. Raises: as `read_notes`."""
    view = _bytes(room)
    left = view[_end_of_plain(view) :]
    if len(left) < _LENGTH_BYTES:
        return b""
    n = int.from_bytes(left[:_LENGTH_BYTES], "little")
    if n > min(MAX_NOTES_BYTES, len(left) - _LENGTH_BYTES):
        raise CorruptError(f"notes of {n} bytes cannot stand in {len(left)}")
    return bytes(left[_LENGTH_BYTES : _LENGTH_BYTES + n])


def _plain_room(buffer: Buffer, layout: ImageLayout) -> memoryview:
    """The reserved entry of plain values and notes."""
    return _bytes(buffer)[layout.plain_start : layout.plain_start + layout.plain_capacity_bytes]


def _end_of_plain(room: memoryview) -> int:
    """Where in their room the plain values end, and the notes begin. Raises: CorruptError."""
    end = _LENGTH_BYTES + int.from_bytes(room[:_LENGTH_BYTES], "little")
    if end > len(room):
        raise CorruptError(f"plain values of {end - _LENGTH_BYTES} bytes cannot stand in {len(room)}")
    return end


def block_of(offset: int) -> int:
    """The block a byte of the image lies in."""
    return offset // BLOCK_BYTES


def block_range(layout: ImageLayout, block: int) -> tuple[int, int]:
    """Where a block starts and stops in the image."""
    start = block * BLOCK_BYTES
    return start, min(start + BLOCK_BYTES, layout.table_start)


def seal_block(buffer: Buffer, layout: ImageLayout, block: int) -> None:
    """Checksum one block into the table."""
    view = _bytes(buffer)
    start, stop = block_range(layout, block)
    at = layout.table_start + block * WORD_BYTES
    view[at : at + WORD_BYTES] = crc64nvme(view[start:stop]).to_bytes(WORD_BYTES, "little")


def seal_table(buffer: Buffer, layout: ImageLayout) -> int:
    """Finish the table once every block is sealed; the CRC64NVME of the whole image."""
    view = _bytes(buffer)
    last = layout.size_bytes - WORD_BYTES
    words_end = layout.table_start + block_count(layout.table_start) * WORD_BYTES
    view[words_end:last] = bytes(last - words_end)
    view[last : layout.size_bytes] = crc64nvme(view[layout.table_start : last]).to_bytes(WORD_BYTES, "little")
    return _table(view, layout).whole_crc64nvme


def table_of(layout: ImageLayout, words: Sequence[int]) -> bytes:
    """The block table of an image whose blocks have these checksums, for one that is never whole in memory."""
    raw = b"".join([word.to_bytes(WORD_BYTES, "little") for word in words])
    raw = raw.ljust(layout.size_bytes - layout.table_start - WORD_BYTES, b"\0")
    return raw + crc64nvme(raw).to_bytes(WORD_BYTES, "little")


def seal(buffer: Buffer, layout: ImageLayout) -> int:
    """Fill the block table; the CRC64NVME of the whole image."""
    for block in range(block_count(layout.table_start)):
        seal_block(buffer, layout, block)
    return seal_table(buffer, layout)


def check_table(buffer: Buffer, layout: ImageLayout) -> int:
    """Prove the table by its own checksum; the CRC64NVME the whole image must have.

    Raises:
        CorruptError: the table was damaged, or never sealed.
    """
    return _table(_bytes(buffer), layout).whole_crc64nvme


def check_block(buffer: Buffer, layout: ImageLayout, block: int) -> None:
    """Compare one block with the table.

    Raises:
        CorruptError: it differs; the message says which range.
    """
    view = _bytes(buffer)
    start, stop = block_range(layout, block)
    at = layout.table_start + block * WORD_BYTES
    prove_block(view[start:stop], block, int.from_bytes(view[at : at + WORD_BYTES], "little"))


def check(buffer: Buffer, layout: ImageLayout) -> int:
    """Prove every byte of the image; its CRC64NVME.

    Raises:
        CorruptError: naming the first bad block.
    """
    view = _bytes(buffer)
    table = _table(view, layout)
    table.check(0, view[: layout.table_start])
    return table.whole_crc64nvme


def _table(view: memoryview, layout: ImageLayout) -> BlockTable:
    return BlockTable(view[layout.table_start : layout.size_bytes], layout)


def _bytes(buffer: Buffer) -> memoryview:
    return memoryview(buffer).cast("B")
