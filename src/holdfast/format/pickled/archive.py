"""The directory of a zip that torch.save wrote: where each record's bytes stand, and their CRC-32.

Records are stored as they are; compressed or encrypted ones are refused. No two may share a byte, nor one with the
directory: a record that is also another's header means something else to each reader.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from holdfast.errors import CorruptError, UnsupportedValueError
from holdfast.format.checksum import Buffer

Read = Callable[[int, int], Buffer]
"""`read(offset, n_bytes)` answers exactly those bytes of the zip."""

MAX_RECORDS = 1_000_000
MAX_DIRECTORY_BYTES = 256 * 2**20

_END = struct.Struct("<4s4H2IH")
_END_SIGN = b"PK\x05\x06"
_LOCATOR = struct.Struct("<4sIQI")
_LOCATOR_SIGN = b"PK\x06\x07"
_END64 = struct.Struct("<4sQ2H2I4Q")
_END64_SIGN = b"PK\x06\x06"
_ENTRY = struct.Struct("<4s6H3I5H2I")
_ENTRY_SIGN = b"PK\x01\x02"
_LOCAL = struct.Struct("<4s5H3I2H")
_LOCAL_SIGN = b"PK\x03\x04"
_LONGEST_COMMENT = 2**16
_IN_64_BIT = 2**32 - 1
_MANY_IN_64_BIT = 2**16 - 1
_ENCRYPTED = 1


@dataclass(frozen=True, slots=True)
class ZipRecord:
    """One file of a zip: `start` is where its bytes begin, `header_start` where its own header does."""

    name: str
    start: int
    size_bytes: int
    crc32: int
    header_start: int

    @property
    def stop(self) -> int:
        return self.start + self.size_bytes


def read_directory(read: Read, size_bytes: int) -> dict[str, ZipRecord]:
    """The records of a zip by name, in the order of their bytes.

    Raises: CorruptError: it is no whole zip, or says two things of one byte; UnsupportedValueError: something in it is
        compressed or encrypted.
    """
    try:
        return _directory(read, size_bytes)
    except (struct.error, UnicodeDecodeError) as e:
        raise CorruptError(f"the directory of a zip cannot be read: {str(e)[:200]}") from None


def _directory(read: Read, size_bytes: int) -> dict[str, ZipRecord]:
    count, start, length, stop = _end(read, size_bytes)
    if count > MAX_RECORDS or length > MAX_DIRECTORY_BYTES:
        raise CorruptError(f"a zip of {count} records, whose directory has {length} bytes, is too large")
    if start + length > stop or count * _ENTRY.size > length:
        raise CorruptError("the directory of a zip lies outside of it")
    data, at = bytes(read(start, length)), 0
    found: list[ZipRecord] = []
    for _ in range(count):
        record, at = _entry(data, at, read, start)
        found.append(record)
    found.sort(key=lambda r: r.header_start)
    if at != length or any(a.stop > b.header_start for a, b in pairwise(found)) or (found and found[-1].stop > start):
        raise CorruptError("records of a zip overlap, or its directory is longer than it says")
    by_name = {record.name: record for record in found}
    if len(by_name) != len(found):
        raise CorruptError("a zip has two records of one name")
    return by_name


def _end(read: Read, size_bytes: int) -> tuple[int, int, int, int]:
    """(records, where the directory begins, its bytes, before what it has to end)."""
    length = min(size_bytes, _END.size + _LONGEST_COMMENT)
    base = size_bytes - length
    tail = bytes(read(base, length))
    at = len(tail)
    while (at := tail.rfind(_END_SIGN, 0, at)) >= 0:
        if len(tail) - at < _END.size:
            continue
        _, disk, first_disk, _, count, directory_bytes, start, comment = _END.unpack_from(tail, at)
        if at + _END.size + comment == len(tail):
            break
    else:
        raise CorruptError("this is no zip, or the end of one is missing")
    if disk or first_disk:
        raise CorruptError("a zip in several parts is not read")
    if count != _MANY_IN_64_BIT and _IN_64_BIT not in (directory_bytes, start):
        return count, start, directory_bytes, base + at
    return _end_64(read, base + at)


def _end_64(read: Read, end: int) -> tuple[int, int, int, int]:
    at = end - _LOCATOR.size
    if at < _END64.size:
        raise CorruptError("the end of a large zip is missing")
    sign, _, where, _ = _LOCATOR.unpack(read(at, _LOCATOR.size))
    if sign != _LOCATOR_SIGN or where + _END64.size > at:
        raise CorruptError("the end of a large zip is missing")
    sign, *_, count, directory_bytes, start = _END64.unpack(read(where, _END64.size))
    if sign != _END64_SIGN:
        raise CorruptError("the end of a large zip is missing")
    return count, start, directory_bytes, where


def _entry(data: bytes, at: int, read: Read, directory: int) -> tuple[ZipRecord, int]:
    """A record of the directory, and where in it the next one begins."""
    fields = _ENTRY.unpack_from(data, at)
    sign, flags, method, crc32 = fields[0], fields[3], fields[4], fields[7]
    packed, size, name_bytes, extra_bytes, comment_bytes = fields[8:13]
    header = fields[16]
    name_at = at + _ENTRY.size
    extra_at = name_at + name_bytes
    end = extra_at + extra_bytes + comment_bytes
    if sign != _ENTRY_SIGN or end > len(data):
        raise CorruptError("the directory of a zip is damaged")
    raw = data[name_at:extra_at]
    size, packed, header = _wide(data[extra_at : extra_at + extra_bytes], size, packed, header)
    if method or flags & _ENCRYPTED or packed != size:
        raise UnsupportedValueError(
            f"{raw[:80].decode()!r} in a zip is compressed or encrypted", hint="torch.save writes neither: save it anew"
        )
    start = _data_start(read, header, raw, directory)
    return ZipRecord(raw.decode(), start, size, crc32, header), end


def _wide(extra: bytes, size: int, packed: int, header: int) -> tuple[int, int, int]:
    """Sizes and place, in 64 bit where the directory has no room for them."""
    numbers = [size, packed, header]
    missing = [i for i, n in enumerate(numbers) if n == _IN_64_BIT]
    at = 0
    while missing and at + 4 <= len(extra):
        tag, length = struct.unpack_from("<2H", extra, at)
        if tag == 1:
            for n, i in enumerate(missing):
                (numbers[i],) = struct.unpack_from("<Q", extra[: at + 4 + length], at + 4 + 8 * n)
            break
        at += 4 + length
    return numbers[0], numbers[1], numbers[2]


def _data_start(read: Read, header: int, raw: bytes, directory: int) -> int:
    """Where the bytes of a record begin, by its own header, which has to have the same name."""
    if header + _LOCAL.size + len(raw) > directory:
        raise CorruptError("a record of a zip lies outside of it")
    local = bytes(read(header, _LOCAL.size + len(raw)))
    sign, *_, name_bytes, extra_bytes = _LOCAL.unpack_from(local)
    if sign != _LOCAL_SIGN or name_bytes != len(raw) or local[_LOCAL.size :] != raw:
        raise CorruptError("a record of a zip has another name where it stands")
    return header + _LOCAL.size + len(raw) + int(extra_bytes)
