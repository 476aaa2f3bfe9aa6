"""Reads an image's header, trusting nothing.

Limits: the header's length is bounded before it is read, and nothing larger than a small multiple of it is ever
allocated; the JSON has a fixed depth; every number is checked before it is used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from holdfast.errors import CorruptError, FormatVersionError, UsageError
from holdfast.format import names
from holdfast.format.checksum import Buffer
from holdfast.format.dtypes import SAFETENSORS, TORCH
from holdfast.format.layout import ENTRY_ALIGN_BYTES, PAGE_BYTES, entry_name, note_of, table_bytes
from holdfast.format.limits import MAX_BYTES, MAX_DIMS, MAX_HEADER_BYTES, check_aliases, check_identity, check_piece
from holdfast.format.records import (
    PAD,
    PLAIN,
    RESERVED,
    TABLE,
    EntryRecord,
    IdentityRecord,
    Metadata,
    PieceNote,
    strictly,
)
from holdfast.model.identity import ImageId
from holdfast.model.image import Entry, ImageHeader, ImageLayout, Piece

Read = Callable[[int, int], Buffer]
"""`read(offset, n_bytes)` answers exactly those bytes."""

_VERSION = re.compile(rb'\{"__metadata__":\{"holdfast\.format":"(0|[1-9][0-9]{0,8})"[,}]')
_TWENTY_DIGITS = re.compile(r"[0-9]{20}")


def parse_header(source: Buffer | Read, size_bytes: int) -> ImageHeader:
    """What an image of `size_bytes` says of itself.

    `source` is the image (its header suffices) or a callable that reads a range of it.

    Raises:
        CorruptError: it is no image of ours, or not one of that size.
        FormatVersionError: a newer Holdfast wrote it.
    """
    raw, header_bytes = _raw_header(source, size_bytes)
    version = _VERSION.match(raw)
    if version is None:
        raise CorruptError("the header does not begin as that of an image does")
    if int(version[1]) != 0:
        raise FormatVersionError(f"the image has format version {int(version[1])}, this Holdfast reads 0")
    metadata, records = _split(raw)
    described = strictly(metadata.image.encode(), IdentityRecord, "holdfast.image")
    notes = strictly(metadata.pieces.encode(), dict[str, PieceNote], "holdfast.pieces")
    aliases = strictly(metadata.aliases.encode(), dict[str, str], "holdfast.aliases")
    try:
        check_identity(described)
        check_aliases(tuple(aliases.items()))
        layout = _layout(records, notes, aliases, header_bytes, described.world_size)
    except UsageError as e:
        raise CorruptError(e.message) from None
    if layout.size_bytes != size_bytes:
        raise CorruptError(f"the header describes {layout.size_bytes} bytes, the image has {size_bytes}")
    attempt = _digits(metadata.attempt, names.MAX_ATTEMPT)
    step = _digits(metadata.step, names.MAX_STEP)
    return ImageHeader(
        format_version=0,
        run=described.run,
        id=ImageId(attempt, step, described.rank, described.image),
        world_size=described.world_size,
        image_count=described.image_count,
        structure=described.structure,
        relies_on=tuple(ImageId(*item) for item in described.relies_on),
        layout=layout,
    )


def _raw_header(source: Buffer | Read, size_bytes: int) -> tuple[bytes, int]:
    """The JSON without its padding, and where the data starts."""
    if size_bytes < 3 * PAGE_BYTES or size_bytes % PAGE_BYTES or size_bytes > MAX_BYTES:
        raise CorruptError(f"no image has {size_bytes} bytes")
    header_bytes = 8 + int.from_bytes(_take(source, 0, 8), "little")
    if header_bytes % PAGE_BYTES or header_bytes > min(MAX_HEADER_BYTES, size_bytes):
        raise CorruptError(f"no image of {size_bytes} bytes has a header of {header_bytes} bytes")
    padded = _take(source, 8, header_bytes - 8)
    raw = padded.rstrip(b" ")
    if len(padded) - len(raw) >= 2 * PAGE_BYTES:
        raise CorruptError("the header is padded by more than a page")
    return raw, header_bytes


def _take(source: Buffer | Read, offset: int, n_bytes: int) -> bytes:
    if callable(source):
        data = bytes(source(offset, n_bytes))
    else:
        data = bytes(memoryview(source).cast("B")[offset : offset + n_bytes])
    if len(data) != n_bytes:
        raise CorruptError(f"the image ends inside its header: {len(data)} of {n_bytes} bytes at {offset}")
    return data


def _split(raw: bytes) -> tuple[Metadata, dict[str, EntryRecord]]:
    """Metadata and entries, each read strictly.

    In canonical JSON a string holds no bare quote, so the first `"},"` is where `__metadata__` ends.
    """
    begin, end = len(b'{"__metadata__":'), raw.find(b'"},"')
    if end < 0:
        raise CorruptError("the header has no entries")
    metadata = strictly(raw[begin : end + 2], Metadata, "__metadata__")
    return metadata, strictly(b"{" + raw[end + 3 :], dict[str, EntryRecord], "the list of entries")


def _digits(text: str, limit: int) -> int:
    if not _TWENTY_DIGITS.fullmatch(text) or int(text) > limit:
        raise CorruptError(f"{text[:30]!r} is no attempt or step")
    return int(text)


def _layout(
    records: dict[str, EntryRecord],
    notes: dict[str, PieceNote],
    aliases: dict[str, str],
    header_bytes: int,
    world_size: int,
) -> ImageLayout:
    """Walk the entries in order: each must begin where the last one ended, and be what its name says."""
    cursor, pads = 0, 0
    entries: list[Entry] = []
    reserved: list[str] = []
    for name, record in records.items():
        start, stop = record.data_offsets
        nbytes = _nbytes(name, record)
        if start != cursor or stop - start != nbytes:
            raise CorruptError(f"entry {name[:80]!r} says {start}..{stop}, expected {cursor}..{cursor + nbytes}")
        if name.startswith(PAD):
            if name != f"{PAD}{pads}" or record.dtype != "U8" or not 0 < nbytes < PAGE_BYTES:
                raise CorruptError(f"pad entry {name[:80]!r} is out of order or of no use")
            pads += 1
        elif name.startswith(RESERVED):
            reserved.append(name)
        elif reserved or start % ENTRY_ALIGN_BYTES:
            raise CorruptError(f"entry {name[:80]!r} at {start} is behind the plain values or not aligned")
        else:
            piece = _piece(name, record, notes.get(name), world_size)
            entries.append(Entry(name, piece, header_bytes + start))
        cursor = stop
    if reserved != [PLAIN, TABLE] or next(reversed(records)) != TABLE:
        raise CorruptError("plain values and block table do not end the image")
    if list(notes) != [e.name for e in entries if e.name in notes]:
        raise CorruptError("holdfast.pieces names what is no entry, or in another order")
    if not aliases.keys().isdisjoint(records):
        raise CorruptError("holdfast.aliases names an entry")
    return _ends(records[PLAIN], records[TABLE], header_bytes, tuple(entries), tuple(aliases.items()))


def _ends(
    plain: EntryRecord,
    table: EntryRecord,
    header_bytes: int,
    entries: tuple[Entry, ...],
    aliases: tuple[tuple[str, str], ...],
) -> ImageLayout:
    plain_start, plain_stop = plain.data_offsets
    table_start = header_bytes + table.data_offsets[0]
    if plain.dtype != "U8" or plain_start % ENTRY_ALIGN_BYTES or plain_stop - plain_start < 8:
        raise CorruptError("the plain values are not where they can be")
    length = table.data_offsets[1] - table.data_offsets[0]
    if table.dtype != "U64" or table_start % PAGE_BYTES or length != table_bytes(table_start):
        raise CorruptError("the block table is not where it can be")
    return ImageLayout(
        entries=entries,
        aliases=aliases,
        header_bytes=header_bytes,
        plain_start=header_bytes + plain_start,
        plain_capacity_bytes=plain_stop - plain_start,
        table_start=table_start,
        size_bytes=table_start + length,
    )


def _nbytes(name: str, record: EntryRecord) -> int:
    """Bytes of an entry by its dtype and shape; reserved entries have one dimension."""
    known = TORCH.get(record.dtype)
    if known is None:
        raise CorruptError(f"entry {name[:80]!r} has the unknown dtype {record.dtype[:30]!r}")
    if len(record.shape) > MAX_DIMS or (name.startswith(RESERVED) and len(record.shape) != 1):
        raise CorruptError(f"entry {name[:80]!r} has {len(record.shape)} dimensions")
    nbytes = known[1] * math.prod(record.shape)
    if nbytes > MAX_BYTES:
        raise CorruptError(f"entry {name[:80]!r} is too large")
    return nbytes


def _piece(name: str, record: EntryRecord, note: PieceNote | None, world_size: int) -> Piece:
    if note is None:
        dtype, itemsize = TORCH[record.dtype]
        lengths = record.shape
        piece = Piece(name, (0,) * len(lengths), lengths, lengths, dtype, itemsize)
        check_piece(piece, world_size)
        return piece
    dtype, itemsize = TORCH[record.dtype] if note.dtype is None else (note.dtype, note.itemsize or 0)
    lengths = record.shape if note.lengths is None else note.lengths
    piece = Piece(
        fqn=name if note.fqn is None else note.fqn,
        offsets=(0,) * len(lengths) if note.offsets is None else note.offsets,
        lengths=lengths,
        shape=lengths if note.shape is None else note.shape,
        dtype=dtype,
        itemsize=itemsize,
        owner_rank=note.owner_rank,
        form=note.form,
    )
    check_piece(piece, world_size)
    stored_as_bytes = piece.dtype not in SAFETENSORS
    if stored_as_bytes and (record.dtype != "U8" or record.shape != (piece.nbytes,)):
        raise CorruptError(f"entry {name[:80]!r} has other bytes than its {piece.dtype} piece")
    if note_of(name, piece) != note or entry_name(piece) != name:
        raise CorruptError(f"holdfast.pieces says of {name[:80]!r} what its entry does not")
    return piece
