"""Reads the bytes of a source once, in its own order, and compares them with the CRC-32 that a zip has of them."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from holdfast.errors import CorruptError
from holdfast.store.importing.files import Files
from holdfast.store.importing.source import Stored, Summed

_PART_BYTES = 16 * 2**20


@dataclass(slots=True)
class _Sum:
    """The CRC-32 of a record's bytes up to `reached`."""

    of: Summed
    reached: int
    crc32: int = 0


class SourceBytes:
    """The bytes of a source's tensors, each asked for from its first byte to its last, in the order of the source.

    Bytes of a record that no tensor has are read for its checksum alone. Memory: what `gathered` holds of one tensor.
    Threads: one.
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self._sum: _Sum | None = None
        self._gathered: tuple[Stored, memoryview] | None = None

    def read_into(self, stored: Stored, offset: int, buffer: memoryview) -> None:
        """Fill the buffer with the bytes of a tensor from `offset` on. Raises: CorruptError; TierError."""
        self._enter(stored.summed)
        if stored.strides is None:
            self._read(stored, stored.start + offset, buffer)
        else:
            buffer[:] = self._in_rows(stored)[offset : offset + len(buffer)]

    def finish(self) -> None:
        """The last bytes were read. Raises: CorruptError when they are not those that were summed."""
        self._enter(None)
        self._gathered = None

    def _in_rows(self, stored: Stored) -> memoryview:
        """The elements of a tensor with strides, one after the other."""
        if self._gathered is None or self._gathered[0] is not stored:
            self._gathered = None
            raw = memoryview(bytearray(stored.span_bytes))
            for at in range(0, len(raw), _PART_BYTES):
                self._read(stored, stored.start + at, raw[at : at + _PART_BYTES])
            self._gathered = stored, _rows(stored, raw)
        return self._gathered[1]

    def _read(self, stored: Stored, start: int, buffer: memoryview) -> None:
        self._files.get(stored.file).read_into(start, buffer)
        if self._sum is not None:
            self._read_up_to(self._sum, start)
            new = start + len(buffer) - self._sum.reached  # two tensors may share bytes
            if new > 0:
                self._sum.crc32 = zlib.crc32(buffer[len(buffer) - new :], self._sum.crc32)
                self._sum.reached += new

    def _enter(self, summed: Summed | None) -> None:
        """The next bytes are of this record: another one before it is done. Raises: CorruptError."""
        if self._sum is not None and self._sum.of != summed:
            done, self._sum = self._sum, None
            self._read_up_to(done, done.of.start + done.of.size_bytes)
            if done.crc32 != done.of.crc32:
                raise CorruptError(
                    f"bytes {done.of.start} to {done.of.start + done.of.size_bytes} of {done.of.file} do not match "
                    "the checksum that is written there"
                )
        if self._sum is None and summed is not None:
            self._sum = _Sum(summed, summed.start)

    def _read_up_to(self, total: _Sum, stop: int) -> None:
        """Bytes of a record that no tensor has."""
        while total.reached < stop:
            data = self._files.get(total.of.file).read(total.reached, min(_PART_BYTES, stop - total.reached))
            total.crc32 = zlib.crc32(data, total.crc32)
            total.reached += len(data)


def _rows(stored: Stored, raw: memoryview) -> memoryview:
    piece, strides = stored.piece, stored.strides or ()
    steps = tuple([step * piece.itemsize for step in strides])
    view = np.lib.stride_tricks.as_strided(
        np.frombuffer(raw, np.uint8), (*piece.lengths, piece.itemsize), (*steps, 1), writeable=False
    )
    rows: Any = np.ascontiguousarray(view).reshape(-1)
    return memoryview(rows)
