"""Lays out an image before any byte exists: header, entries, plain values, block table.

Byte order: header (padded with spaces to a multiple of 4096) | entries, in the order given, each at a multiple of 64 |
plain values | block table at a multiple of 4096. safetensors allows no holes, so pad entries fill what
alignment leaves.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from holdfast.errors import CapacityError, UsageError
from holdfast.format import names
from holdfast.format.checksum import Buffer, block_count
from holdfast.format.dtypes import SAFETENSORS
from holdfast.format.records import (
    PAD,
    PLAIN,
    RESERVED,
    TABLE,
    EntryRecord,
    ImageRecordJson,
    Metadata,
    PieceNote,
)
from holdfast.model.identity import ImageId
from holdfast.model.image import Entry, ImageLayout, Piece

PAGE_BYTES = 4096
ENTRY_ALIGN_BYTES = 64
MAX_HEADER_BYTES = 32 * 2**20
MAX_DIMS = 64
MAX_BYTES = 2**62
MAX_TEXT = 4096
MAX_ITEMSIZE = 64

_STRUCTURE = re.compile(r"[0-9A-Za-z_.:-]{0,128}")
_DTYPE = re.compile(r"[a-z][a-z0-9_]{0,63}")
_BEFORE_ATTEMPT = b'{"__metadata__":{"holdfast.format":"0","holdfast.attempt":"'
_BETWEEN = b'","holdfast.step":"'
_DIGITS = 20
ATTEMPT_AT = 8 + len(_BEFORE_ATTEMPT)
"""Where in an image the twenty digits of the attempt stand."""
STEP_AT = ATTEMPT_AT + _DIGITS + len(_BETWEEN)
"""Where in an image the twenty digits of the step stand."""


@dataclass(frozen=True, slots=True)
class Template:
    """A layout with its header, ready to be stamped into an image buffer at every save.

    `pads` are the (start, stop) of the filler between entries.
    """

    layout: ImageLayout
    header: bytes
    pads: tuple[tuple[int, int], ...]

    def stamp(self, buffer: Buffer, attempt: int, step: int) -> None:
        """Write the header of this attempt and step into the image that `buffer` begins with.

        Fillers are zeroed too: slots are reused, and equal states must give equal bytes.
        """
        view = memoryview(buffer).cast("B")
        _within("attempt", attempt, names.MAX_ATTEMPT)
        _within("step", step, names.MAX_STEP)
        view[: len(self.header)] = self.header
        view[ATTEMPT_AT : ATTEMPT_AT + _DIGITS] = b"%020d" % attempt
        view[STEP_AT : STEP_AT + _DIGITS] = b"%020d" % step
        for start, stop in self.pads:
            view[start:stop] = bytes(stop - start)


def lay_out(  # noqa: PLR0913  (the identity of an image has that many parts)
    pieces: Sequence[Piece],
    aliases: Iterable[tuple[str, str]] = (),
    *,
    run: str,
    rank: int,
    world_size: int,
    image: int = 0,
    image_count: int = 1,
    structure: str = "",
    relies_on: Sequence[ImageId] = (),
    plain_bytes: int = 0,
) -> Template:
    """Place `pieces`, in the order given, in one image.

    `plain_bytes` is the length of the plain values' payload now; they get room to grow.

    Raises:
        UsageError: a piece or a number that no image can hold.
        CapacityError: so many pieces that the header would pass its limit.
    """
    described = ImageRecordJson(
        run,
        rank,
        world_size,
        image,
        image_count,
        structure,
        [(i.attempt, i.step, i.rank, i.image) for i in relies_on],
    )
    check_identity(described)
    alias_map = check_aliases(tuple(aliases))
    plan = _Plan(base=0)
    notes: dict[str, PieceNote] = {}
    for piece in pieces:
        check_piece(piece, world_size)
        plan.add(piece, notes)
    plan.pad_to(ENTRY_ALIGN_BYTES)
    plain_start, capacity = plan.cursor, plain_capacity_bytes(plain_bytes)
    plan.reserve(PLAIN, "U8", capacity, capacity)
    plan.pad_to(PAGE_BYTES)
    for alias in alias_map:
        if alias in plan.records:
            raise UsageError(f"{alias} is both a tensor and an alias")
    # Offsets count from the end of the header, whose length depends on their digits alone: no circle.
    header, shift, table_start, size = _finish(plan, described, notes, alias_map)
    layout = ImageLayout(
        entries=tuple(Entry(name, piece, start + shift) for name, piece, start in plan.placed),
        aliases=tuple(alias_map.items()),
        header_bytes=shift,
        plain_start=plain_start + shift,
        plain_capacity_bytes=capacity,
        table_start=table_start,
        size_bytes=size,
    )
    return Template(layout, header, tuple((a + shift, b + shift) for a, b in plan.pads))


def plain_capacity_bytes(payload_bytes: int) -> int:
    """Room for plain values, their length word included: a quarter and a page more than they need now."""
    return _up(8 + payload_bytes + payload_bytes // 4 + PAGE_BYTES, ENTRY_ALIGN_BYTES)


def table_bytes(table_start: int) -> int:
    """Length of the block table: a word per block before it and one for the table itself, in whole pages."""
    return _up(8 * (block_count(table_start) + 1), PAGE_BYTES)


def note_of(name: str, piece: Piece) -> PieceNote | None:
    """What `holdfast.pieces` must say of an entry; None if name, dtype and shape say it all."""
    known = piece.dtype in SAFETENSORS
    if known and piece.is_whole and piece.owner_rank is None and name == piece.fqn:
        return None
    return PieceNote(
        fqn=None if name == piece.fqn else piece.fqn,
        offsets=None if piece.is_whole else list(piece.offsets),
        lengths=None if known else list(piece.lengths),
        shape=None if piece.is_whole else list(piece.shape),
        dtype=None if known else piece.dtype,
        itemsize=None if known else piece.itemsize,
        owner_rank=piece.owner_rank,
    )


def entry_name(piece: Piece) -> str:
    """The name an entry gets: the fqn, with the rectangle where it is not the whole tensor."""
    if piece.is_whole:
        return piece.fqn
    return f"{piece.fqn}[{','.join(f'{o}:{o + n}' for o, n in zip(piece.offsets, piece.lengths, strict=True))}]"


def check_piece(piece: Piece, world_size: int) -> None:
    """Refuse a piece that no image can hold. Raises: UsageError."""
    fqn = piece.fqn
    if fqn.startswith(RESERVED) or fqn == "__metadata__" or not 0 < len(fqn) <= MAX_TEXT:
        raise UsageError(f"{fqn[:80]!r} cannot be the name of a tensor", hint=f"names under {RESERVED} are reserved")
    ndim = len(piece.shape)
    if ndim > MAX_DIMS or len(piece.offsets) != ndim or len(piece.lengths) != ndim:
        raise UsageError(f"{fqn}: offsets, lengths and shape must have one item per dimension, at most {MAX_DIMS}")
    for offset, length, size in zip(piece.offsets, piece.lengths, piece.shape, strict=True):
        if offset < 0 or length < 0 or offset + length > size:
            raise UsageError(f"{fqn}: the piece {piece.offsets}+{piece.lengths} lies outside of {piece.shape}")
    if not 0 < piece.itemsize <= MAX_ITEMSIZE or piece.itemsize * math.prod(piece.shape) > MAX_BYTES:
        raise UsageError(f"{fqn}: {piece.shape} of {piece.itemsize} bytes each is no possible size")
    known = SAFETENSORS.get(piece.dtype)
    if (known is None and not _DTYPE.fullmatch(piece.dtype)) or (known is not None and known[1] != piece.itemsize):
        raise UsageError(f"{fqn}: {piece.dtype[:80]!r} of {piece.itemsize} bytes is no dtype")
    if piece.owner_rank is not None and not 0 <= piece.owner_rank < world_size:
        raise UsageError(f"{fqn}: owner rank {piece.owner_rank} is not in a world of {world_size}")


def check_identity(described: ImageRecordJson) -> None:
    """Refuse an image that says impossible things of itself. Raises: UsageError."""
    if not 0 < len(described.run) <= MAX_TEXT:
        raise UsageError("a run needs a name of at most 4096 characters")
    _within("world_size", described.world_size - 1, names.MAX_RANK)
    _within("rank", described.rank, described.world_size - 1)
    _within("image_count", described.image_count - 1, names.MAX_IMAGE)
    _within("image", described.image, described.image_count - 1)
    if not _STRUCTURE.fullmatch(described.structure):
        raise UsageError(f"{described.structure[:80]!r} is no structure digest")
    for attempt, step, rank, image in described.relies_on:
        _within("relies_on attempt", attempt, names.MAX_ATTEMPT)
        _within("relies_on step", step, names.MAX_STEP)
        _within("relies_on rank", rank, names.MAX_RANK)
        _within("relies_on image", image, names.MAX_IMAGE)
    if len(described.relies_on) > names.MAX_IMAGE or len(set(described.relies_on)) != len(described.relies_on):
        raise UsageError("relies_on names an image twice, or too many")


def check_aliases(aliases: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Aliases as a mapping. Raises: UsageError."""
    found = dict(aliases)
    if len(found) != len(aliases):
        raise UsageError("an alias is given twice")
    for alias, target in aliases:
        if alias.startswith(RESERVED) or not 0 < len(alias) <= MAX_TEXT or target in found:
            raise UsageError(f"{alias[:80]!r} cannot be an alias of {target[:80]!r}")
    return found


class _Plan:
    """Entries as they are placed, counted from the end of the header."""

    def __init__(self, base: int) -> None:
        self.cursor = base
        self.records: dict[str, EntryRecord] = {}
        self.placed: list[tuple[str, Piece, int]] = []
        self.pads: list[tuple[int, int]] = []

    def pad_to(self, align: int) -> None:
        gap = -self.cursor % align
        if gap:
            start = self.cursor
            self.reserve(f"{PAD}{len(self.pads)}", "U8", gap, gap)
            self.pads.append((start, start + gap))

    def reserve(self, name: str, dtype: str, items: int, nbytes: int) -> None:
        self.records[name] = EntryRecord(dtype, [items], (self.cursor, self.cursor + nbytes))
        self.cursor += nbytes

    def add(self, piece: Piece, notes: dict[str, PieceNote]) -> None:
        self.pad_to(ENTRY_ALIGN_BYTES)
        name = entry_name(piece)
        if name in self.records:
            raise UsageError(f"{name} is placed twice in one image")
        nbytes = piece.nbytes
        note = note_of(name, piece)
        if note is not None:
            notes[name] = note
        known = SAFETENSORS.get(piece.dtype)
        dtype, shape = (known[0], list(piece.lengths)) if known else ("U8", [nbytes])
        start = self.cursor
        self.records[name] = EntryRecord(dtype, shape, (start, start + nbytes))
        self.placed.append((name, piece, start))
        self.cursor += nbytes


def _finish(
    plan: _Plan, described: ImageRecordJson, notes: dict[str, PieceNote], aliases: dict[str, str]
) -> tuple[bytes, int, int, int]:
    """Header bytes, their length, table start and image size."""
    data_bytes = plan.cursor
    encode = msgspec.json.encode
    try:
        text = [encode(part).decode() for part in (described, notes, aliases)]
        metadata = encode(Metadata("0", "0" * _DIGITS, "0" * _DIGITS, *text))
        body = encode(plan.records)
    except UnicodeEncodeError as e:
        raise UsageError(f"a name is not valid text: {e.object[:80]!r}") from None
    # The table's length depends on where it starts, which depends on the header's length, which depends on the digits
    # of the table's length: the longer of two tries always settles it.
    header_bytes = 0
    while True:
        words = table_bytes(header_bytes + data_bytes) // 8
        table = encode({TABLE: EntryRecord("U64", [words], (data_bytes, data_bytes + 8 * words))})
        raw = b'{"__metadata__":' + metadata + b"," + body[1:-1] + b"," + table[1:]
        needed = _up(8 + len(raw), PAGE_BYTES)
        if needed <= header_bytes:
            break
        header_bytes = needed
    if header_bytes > MAX_HEADER_BYTES:
        raise CapacityError(
            f"{len(plan.placed)} entries need a header of {header_bytes} bytes, the limit is {MAX_HEADER_BYTES}",
            hint="give this rank several images",
        )
    table_start = header_bytes + data_bytes
    if table_start + 8 * words > MAX_BYTES:
        raise CapacityError(f"an image of {table_start} bytes is too large")
    header = (header_bytes - 8).to_bytes(8, "little") + raw.ljust(header_bytes - 8)
    return header, header_bytes, table_start, table_start + 8 * words


def _within(what: str, value: int, limit: int) -> None:
    if not 0 <= value <= limit:
        raise UsageError(f"{what} {value} is not in 0..{limit}")


def _up(n: int, align: int) -> int:
    return -(-n // align) * align
