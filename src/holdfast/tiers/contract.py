"""The contract every tier keeps. Clauses here are tested by tests/contract for every backend and wrapper.

Synchronous, buffer in and buffer out, called from bounded thread pools (every method is thread-safe).
Keys are flat, `/` only groups. Objects appear whole or not at all and are never changed in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from holdfast.model.place import FailureDomain, Scope

Buffer = memoryview
"""A C-contiguous view of bytes (format "B"). Writable where bytes are read into it."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a tier says of itself, as data."""

    scope: Scope
    survives: FailureDomain
    """The largest failure domain whose loss leaves the bytes readable to someone."""
    alignment_bytes: int
    """Offsets, lengths and addresses given to `Upload.write` and `read_into` are fastest at multiples of this."""
    part_bytes: int
    """A good size for one `Upload.write` or `read_into` call."""
    concurrency: int
    """How many calls at once the tier gains from."""
    atomic_create: bool
    """Whether `if_absent=True` has exactly one winner among racers."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One listed object."""

    key: str
    size_bytes: int


class Upload(Protocol):
    """An object being written: invisible until `publish`, gone after `abort`.

    `write` calls may come from several threads, in any order, on disjoint ranges, and must cover
    [0, size_bytes) before `publish`. Writing the same range again with the same bytes is allowed (a retry).
    """

    def write(self, offset: int, buffer: Buffer) -> None: ...

    def publish(self, *, if_absent: bool = True) -> None:
        """Make the object visible, whole.

        Atomicity: readers and `list` see nothing before and everything after.
        Durability: on return the bytes survive what `Capabilities.survives` says.
        Raises: AlreadyExistsError when `if_absent` and the key is taken (the upload is aborted).
        """

    def abort(self) -> None:
        """Forget the upload and free its room. Idempotent; never raises for an upload that is already gone."""


class Tier(Protocol):
    """A place that holds images and small objects.

    Errors: every backend translates its library's errors at its own boundary: NotFoundError, AlreadyExistsError,
    TierFullError, TierPermissionError, TierUnavailableError (retryable), TierError (anything else). Each names the
    tier and the key.
    """

    name: str
    capabilities: Capabilities

    def put(self, key: str, buffer: Buffer, *, if_absent: bool = False) -> None:
        """Store a small object whole and durably.

        Raises: AlreadyExistsError when `if_absent` and the key is taken. Where a retry's own lost answer may be
        the cause, the caller compares the bytes.
        """

    def upload(self, key: str, size_bytes: int) -> Upload:
        """Begin writing an object of exactly `size_bytes`. Raises: TierFullError where room is known to lack."""

    def read_into(self, key: str, offset: int, buffer: Buffer) -> None:
        """Fill `buffer` with the object's bytes from `offset`. Never short.

        Raises: NotFoundError; CorruptError when the object ends before the range does.
        """

    def size(self, key: str) -> int:
        """Length of the object in bytes. Raises: NotFoundError."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every published object whose key starts with `prefix`, in key order. Unfinished uploads never show."""

    def delete(self, key: str) -> None:
        """Remove an object, durably. Idempotent: deleting what is not there succeeds."""

    def sweep(self, *, owner_prefix: str | None = None) -> int:
        """Remove left-over unfinished uploads, of `owner_prefix` or (None) of all. Returns how many."""

    def close(self) -> None:
        """Release descriptors and threads. Idempotent."""


def read_all(tier: Tier, key: str) -> bytearray:
    """The whole of a small object."""
    out = bytearray(tier.size(key))
    tier.read_into(key, 0, memoryview(out))
    return out
