"""Lays out an image before any byte exists: header, entries, plain values, block table.

Byte order: header (padded with spaces to a multiple of 4096) | entries, in the order given, each at a multiple of 64 |
plain values | block table at a multiple of 4096. safetensors allows no holes, so pad entries fill what
alignment leaves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import msgspec

from holdfast.errors import CapacityError, UsageError
from holdfast.format import names
from holdfast.format.checksum import Buffer, block_count
from holdfast.format.dtypes import SAFETENSORS
from holdfast.format.limits import MAX_BYTES, MAX_HEADER_BYTES, check_aliases, check_identity, check_piece, check_within
from holdfast.format.records import PAD, PLAIN, TABLE, EntryRecord, IdentityRecord, Metadata, PieceNote
from holdfast.model.identity import ImageId
from holdfast.model.image import Entry, ImageLayout, Piece

PAGE_BYTES = 4096
ENTRY_ALIGN_BYTES = 64
_BEFORE_ATTEMPT = b'{"__metadata__":{"holdfast.format":"0","holdfast.attempt":"'
_BETWEEN = b'","holdfast.step":"'
_DIGITS = 20
_MERGE_BYTES = 1024
ATTEMPT_AT = 8 + len(_BEFORE_ATTEMPT)
"""Where in an image the twenty digits of the attempt stand."""
STEP_AT = ATTEMPT_AT + _DIGITS + len(_BETWEEN)
"""Where in an image the twenty digits of the step stand."""


@dataclass(frozen=True, slots=True)
class Template:
    """A layout with its header, ready to be stamped into an image buffer at every save.

    `pads` are the (start, stop) of the filler between entries; where fillers lie near each other, one range goes over
    all of them and the small entries between.
    """

    layout: ImageLayout
    header: bytes
    pads: tuple[tuple[int, int], ...]

    def stamp(self, buffer: Buffer, attempt: int, step: int) -> None:
        """Write the header of this attempt and step into the image that `buffer` begins with, before its entries.

        Fillers are zeroed too, and small entries between them: slots are reused, and equal states must give equal
        bytes.
        """
        view = memoryview(buffer).cast("B")
        self.stamp_header(view, attempt, step)
        for start, stop in self.pads:
            view[start:stop] = bytes(stop - start)

    def stamp_header(self, buffer: Buffer, attempt: int, step: int) -> None:
        """Write the header alone, for an image that is never whole in memory."""
        view = memoryview(buffer).cast("B")
        check_within("attempt", attempt, names.MAX_ATTEMPT)
        check_within("step", step, names.MAX_STEP)
        view[: len(self.header)] = self.header
        view[ATTEMPT_AT : ATTEMPT_AT + _DIGITS] = b"%020d" % attempt
        view[STEP_AT : STEP_AT + _DIGITS] = b"%020d" % step


def lay_out(  # noqa: PLR0913  (the identity of an image has that many parts)
    pieces: Iterable[Piece],
    aliases: Iterable[tuple[str, str]] = (),
    *,
    run: str,
    rank: int,
    world_size: int,
    image: int = 0,
    image_count: int = 1,
    structure: str = "",
    relies_on: Iterable[ImageId] = (),
    plain_bytes: int = 0,
    min_header_bytes: int = 0,
) -> Template:
    """Place `pieces`, in the order given, in one image.

    `plain_bytes` is the length of the plain values' payload now; they get room to grow. With `min_header_bytes` images
    that differ in little but what they rely on have one layout.

    Raises:
        UsageError: a piece or a number that no image can hold.
        CapacityError: so many pieces that the header would pass its limit.
    """
    relied_on = [(i.attempt, i.step, i.rank, i.image) for i in relies_on]
    identity = IdentityRecord(run, rank, world_size, image, image_count, structure, relied_on)
    check_identity(identity)
    alias_map = check_aliases(tuple(aliases))
    plan = _Plan()
    for piece in pieces:
        check_piece(piece, world_size)
        plan.add(piece)
    twice = next((alias for alias in alias_map if alias in plan.records), None)
    if twice is not None:
        raise UsageError(f"{twice!r} is both a tensor and an alias")
    plain_start, capacity = plan.add_plain(plain_bytes)
    header, table_start, size_bytes = _finish(plan, identity, alias_map, min_header_bytes)
    shift = len(header)  # until here everything was counted from the end of the header
    layout = ImageLayout(
        entries=tuple([Entry(name, piece, start + shift) for name, piece, start in plan.placed]),
        aliases=tuple(alias_map.items()),
        header_bytes=shift,
        plain_start=plain_start + shift,
        plain_capacity_bytes=capacity,
        table_start=table_start,
        size_bytes=size_bytes,
    )
    return Template(layout, header, tuple([(a + shift, b + shift) for a, b in _merged(plan.pads)]))


def _merged(pads: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Pads with little between them as one: one call per pad would take longer than their bytes, by far."""
    merged: list[tuple[int, int]] = []
    for start, stop in pads:
        if merged and start - merged[-1][1] <= _MERGE_BYTES:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return merged


def plain_capacity_bytes(payload_bytes: int) -> int:
    """Room for plain values, their length word included: a quarter and a page more than they need now."""
    return _up(8 + payload_bytes + payload_bytes // 4 + PAGE_BYTES, ENTRY_ALIGN_BYTES)


def table_bytes(table_start: int) -> int:
    """Length of the block table: a word per block before it and one for the table itself, in whole pages."""
    return _up(8 * (block_count(table_start) + 1), PAGE_BYTES)


def note_of(name: str, piece: Piece) -> PieceNote | None:
    """What `holdfast.pieces` must say of an entry; None if name, dtype and shape say it all."""
    known = piece.dtype in SAFETENSORS
    if known and piece.is_whole and piece.owner_rank is None and piece.form is None and name == piece.fqn:
        return None
    return PieceNote(
        fqn=None if name == piece.fqn else piece.fqn,
        offsets=None if piece.is_whole else piece.offsets,
        lengths=None if known else piece.lengths,
        shape=None if piece.is_whole else piece.shape,
        dtype=None if known else piece.dtype,
        itemsize=None if known else piece.itemsize,
        owner_rank=piece.owner_rank,
        form=piece.form,
    )


def entry_name(piece: Piece) -> str:
    """The name an entry gets: the fqn, with the rectangle where it is not the whole tensor."""
    return piece.fqn if piece.is_whole else piece.fqn + _rectangle(piece.offsets, piece.lengths)


@lru_cache(4096)  # an image has few distinct rectangles, and this runs at every layout and every parse
def _rectangle(offsets: tuple[int, ...], lengths: tuple[int, ...]) -> str:
    return f"[{','.join([f'{o}:{o + n}' for o, n in zip(offsets, lengths, strict=True)])}]"


class _Plan:
    """Entries as they are placed, counted from the end of the header."""

    def __init__(self) -> None:
        self.cursor = 0
        self.records: dict[str, EntryRecord] = {}
        self.notes: dict[str, PieceNote] = {}
        self.placed: list[tuple[str, Piece, int]] = []
        self.pads: list[tuple[int, int]] = []

    def add(self, piece: Piece) -> None:
        self._pad_to(ENTRY_ALIGN_BYTES)
        name, nbytes = entry_name(piece), piece.nbytes
        if name in self.records:
            raise UsageError(f"{name!r} is placed twice in one image")
        note = note_of(name, piece)
        if note is not None:
            self.notes[name] = note
        known = SAFETENSORS.get(piece.dtype)
        self.placed.append((name, piece, self.cursor))
        self._put(name, known[0] if known else "U8", piece.lengths if known else (nbytes,), nbytes)

    def add_plain(self, payload_bytes: int) -> tuple[int, int]:
        """Where the plain values start, and their room."""
        self._pad_to(ENTRY_ALIGN_BYTES)
        start, capacity = self.cursor, plain_capacity_bytes(payload_bytes)
        self._put(PLAIN, "U8", (capacity,), capacity)
        self._pad_to(PAGE_BYTES)
        return start, capacity

    def _pad_to(self, align: int) -> None:
        gap = -self.cursor % align
        if gap:
            self.pads.append((self.cursor, self.cursor + gap))
            self._put(f"{PAD}{len(self.pads) - 1}", "U8", (gap,), gap)

    def _put(self, name: str, dtype: str, shape: tuple[int, ...], nbytes: int) -> None:
        start = self.cursor
        self.cursor = start + nbytes
        self.records[name] = EntryRecord(dtype, shape, (start, self.cursor))


def _finish(
    plan: _Plan, identity: IdentityRecord, aliases: dict[str, str], min_header_bytes: int
) -> tuple[bytes, int, int]:
    """Header bytes, table start and image size."""
    try:
        body = _body(plan, identity, aliases)
    except UnicodeEncodeError as e:
        raise UsageError(f"a name is not valid text: {e.object[:80]!r}") from None
    # The table's length depends on where it starts, so on the header's length, so on the digits of the table's length.
    # Headers only grow here, so this ends.
    header_bytes, needed = 0, _up(max(min_header_bytes, PAGE_BYTES), PAGE_BYTES)
    while needed > header_bytes:
        header_bytes = needed
        length = table_bytes(header_bytes + plan.cursor)
        record = EntryRecord("U64", (length // 8,), (plan.cursor, plan.cursor + length))
        raw = body + msgspec.json.encode({TABLE: record})[1:]
        needed = _up(8 + len(raw), PAGE_BYTES)
    table_start = header_bytes + plan.cursor
    if header_bytes > MAX_HEADER_BYTES or table_start + length > MAX_BYTES:
        raise CapacityError(
            f"an image of {len(plan.placed)} entries, {table_start} bytes and a header of {header_bytes} is too large",
            hint=f"give this rank several images; a header may have {MAX_HEADER_BYTES} bytes",
        )
    header = (header_bytes - 8).to_bytes(8, "little") + raw.ljust(header_bytes - 8)
    return header, table_start, table_start + length


def _body(plan: _Plan, identity: IdentityRecord, aliases: dict[str, str]) -> bytes:
    """The header's JSON up to the table's entry."""
    encode, zeros = msgspec.json.encode, "0" * _DIGITS
    texts = [encode(part).decode() for part in (identity, plan.notes, aliases)]
    metadata = encode(Metadata("0", zeros, zeros, *texts))
    return b'{"__metadata__":' + metadata + b"," + encode(plan.records)[1:-1] + b","


def _up(n: int, align: int) -> int:
    return -(-n // align) * align
