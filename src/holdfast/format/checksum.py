"""CRC64NVME of buffers, and of a whole from its parts.

The computation releases the GIL and copies nothing: any contiguous buffer will do, whatever its shape or item type.
"""

from __future__ import annotations

from typing import TypeAlias

from awscrt import checksums

Buffer: TypeAlias = bytes | bytearray | memoryview

BLOCK_BYTES = 4 * 2**20
"""An image is checksummed in blocks of this size; the last one is shorter."""


def crc64nvme(buffer: Buffer, previous: int = 0) -> int:
    """CRC64NVME of `buffer`, going on from `previous` (the checksum of what stands before it)."""
    value: int = checksums.crc64nvme(buffer, previous)
    return value


def combine(a: int, b: int, b_bytes: int) -> int:
    """The checksum of two parts in a row from their own; `b_bytes` is the length of the second."""
    value: int = checksums.combine_crc64nvme(a, b, b_bytes)
    return value


def block_count(n_bytes: int) -> int:
    """How many blocks `n_bytes` fill."""
    return -(-n_bytes // BLOCK_BYTES)
