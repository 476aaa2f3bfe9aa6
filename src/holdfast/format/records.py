"""The JSON inside an image's header, as typed records: read strictly, written one way only.

Everything read is encoded again and compared with what was read (`strictly`). That one comparison refuses duplicate
keys, stray whitespace, other spellings of a number or a string, and keys out of order.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from holdfast.errors import CorruptError

RESERVED = "__holdfast__."
PAD = "__holdfast__.pad."
PLAIN = "__holdfast__.plain"
TABLE = "__holdfast__.crc64nvme"

T = TypeVar("T")

Size = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
"""Any number an image or a manifest names: no sign to trick arithmetic with, no digits by the thousand."""


class EntryRecord(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One entry as safetensors writes it; `data_offsets` count from the end of the header."""

    dtype: str
    shape: tuple[Size, ...]
    data_offsets: tuple[Size, Size]


class Metadata(msgspec.Struct, forbid_unknown_fields=True):
    """`__metadata__`: strings only, as safetensors demands; the last three hold JSON."""

    format: str = msgspec.field(name="holdfast.format")
    attempt: str = msgspec.field(name="holdfast.attempt")
    step: str = msgspec.field(name="holdfast.step")
    image: str = msgspec.field(name="holdfast.image")
    pieces: str = msgspec.field(name="holdfast.pieces")
    aliases: str = msgspec.field(name="holdfast.aliases")


class IdentityRecord(msgspec.Struct, forbid_unknown_fields=True):
    """`holdfast.image`: who wrote it and which of how many it is."""

    run: str
    rank: Size
    world_size: Size
    image: Size
    image_count: Size
    structure: str
    relies_on: list[tuple[Size, Size, Size, Size]]


class PieceNote(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """`holdfast.pieces`: what an entry's name, dtype and shape do not already say of its piece."""

    fqn: str | None = None
    offsets: tuple[Size, ...] | None = None
    lengths: tuple[Size, ...] | None = None
    shape: tuple[Size, ...] | None = None
    dtype: str | None = None
    itemsize: Size | None = None
    owner_rank: Size | None = None
    form: str | None = None


def strictly(data: bytes, as_type: type[T], what: str) -> T:
    """`data` as JSON of the given type, if it is exactly what we would have written.

    Raises:
        CorruptError: it is not.
    """
    try:
        value = msgspec.json.decode(data, type=as_type)
        same = msgspec.json.encode(value) == data
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as e:
        raise CorruptError(f"{what} is not what Holdfast writes: {str(e)[:200]}") from None
    if not same:
        raise CorruptError(f"{what} is not in canonical form", hint="duplicate keys, spaces or another order of keys")
    return value
