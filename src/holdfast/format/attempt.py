"""The claim of an attempt and the tombstone of a checkpoint: one JSON line each, ending in its own checksum.

    {"holdfast":"attempt","version":0,"run":"run7","attempt":2,"parent":[1,50],"coordinator":"…","crc64nvme":"…"}
    {"holdfast":"tombstone","version":0,"attempt":1,"step":100,"crc64nvme":"…"}

The checksum is that of every byte before `,"crc64nvme"`. Authority hangs on these few bytes,
so a flipped one must show.
"""

from __future__ import annotations

import re
from typing import Literal, TypeVar

import msgspec

from holdfast.errors import CorruptError, FormatVersionError, UsageError
from holdfast.format.checksum import Buffer, crc64nvme
from holdfast.format.names import MAX_ATTEMPT, MAX_STEP
from holdfast.format.records import strictly
from holdfast.model.identity import Attempt, CheckpointId

MAX_LINE_BYTES = 64 * 1024

_END = re.compile(rb',"crc64nvme":"([0-9a-f]{16})"\}\n')
_END_BYTES = len(b',"crc64nvme":"0123456789abcdef"}\n')
_VERSION = re.compile(rb'\{"holdfast":"(?:attempt|tombstone)","version":([1-9][0-9]{0,8}),')


class _Claim(msgspec.Struct, forbid_unknown_fields=True):
    holdfast: Literal["attempt"]
    version: Literal[0]
    run: str
    attempt: int
    parent: tuple[int, int] | None
    coordinator: str


class _Tombstone(msgspec.Struct, forbid_unknown_fields=True):
    holdfast: Literal["tombstone"]
    version: Literal[0]
    attempt: int
    step: int


T = TypeVar("T", _Claim, _Tombstone)


def encode(attempt: Attempt) -> bytes:
    """The claim of an attempt as one line."""
    parent = None if attempt.parent is None else (attempt.parent.attempt, attempt.parent.step)
    if not _is_checkpoint(attempt.attempt, 0) or (parent is not None and not _is_checkpoint(*parent)):
        raise UsageError(f"{attempt} is no possible attempt")
    return _line(_Claim("attempt", 0, attempt.run, attempt.attempt, parent, attempt.coordinator))


def decode(data: Buffer) -> Attempt:
    """The attempt a line claims.

    Raises:
        CorruptError: it is no such line.
        FormatVersionError: a newer Holdfast wrote it.
    """
    claim = _parse(data, _Claim, "the claim of an attempt")
    parent = None if claim.parent is None else CheckpointId(*claim.parent)
    if not _is_checkpoint(claim.attempt, 0) or (parent is not None and not _is_checkpoint(parent.attempt, parent.step)):
        raise CorruptError("the claim of an attempt names impossible numbers")
    return Attempt(claim.run, claim.attempt, parent, claim.coordinator)


def encode_tombstone(checkpoint: CheckpointId) -> bytes:
    """The tombstone of a checkpoint as one line."""
    if not _is_checkpoint(checkpoint.attempt, checkpoint.step):
        raise UsageError(f"{checkpoint} is no possible checkpoint")
    return _line(_Tombstone("tombstone", 0, checkpoint.attempt, checkpoint.step))


def decode_tombstone(data: Buffer) -> CheckpointId:
    """The checkpoint a tombstone stands for.

    Raises:
        CorruptError: it is no such line.
        FormatVersionError: a newer Holdfast wrote it.
    """
    stone = _parse(data, _Tombstone, "the tombstone")
    if not _is_checkpoint(stone.attempt, stone.step):
        raise CorruptError("the tombstone names impossible numbers")
    return CheckpointId(stone.attempt, stone.step)


def _line(record: _Claim | _Tombstone) -> bytes:
    try:
        body = msgspec.json.encode(record)[:-1]
    except UnicodeEncodeError:
        raise UsageError("the name of a run or a coordinator is not valid text") from None
    line = body + b',"crc64nvme":"%016x"}\n' % crc64nvme(body)
    if len(line) > MAX_LINE_BYTES:
        raise UsageError(f"a line of {len(line)} bytes is too long", hint="shorten the name of the run")
    return line


def _parse(data: Buffer, as_type: type[T], what: str) -> T:
    if not _END_BYTES < len(data) <= MAX_LINE_BYTES:
        raise CorruptError(f"{what} has {len(data)} bytes")
    line = bytes(data)
    body, end = line[:-_END_BYTES], _END.fullmatch(line[-_END_BYTES:])
    if end is None or int(end[1], 16) != crc64nvme(body):
        raise CorruptError(f"{what} does not match its checksum")
    newer = _VERSION.match(body)
    if newer is not None:
        raise FormatVersionError(f"{what} has version {int(newer[1])}, this Holdfast reads 0")
    return strictly(body + b"}", as_type, what)


def _is_checkpoint(attempt: int, step: int) -> bool:
    return 0 <= attempt <= MAX_ATTEMPT and 0 <= step <= MAX_STEP
