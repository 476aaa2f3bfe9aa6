"""The contract every tier keeps. Clauses here are tested by tests/contract for every backend and wrapper.

Synchronous, buffer in and buffer out, called from bounded thread pools (every method is thread-safe).
Keys are flat, `/` only groups. Objects appear whole or not at all and are never changed in place.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from holdfast.errors import TierError, UsageError
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
    version: str = ""
    """Another one whenever the bytes may be others; empty: the tier cannot tell."""


class Upload(Protocol):
    """An object being written: invisible until `publish`, gone after `abort`.

    `write` calls may come from several threads, in any order, on disjoint ranges, and must cover
    [0, size_bytes) before `publish`. Writing the same range again with the same bytes is allowed (a retry).
    After a failed `publish` it may be called again and goes on where it stood; an upload whose bytes can no longer
    be trusted (a failed fsync) then raises a TierError that is not retryable: upload anew.
    """

    def write(self, offset: int, buffer: Buffer) -> None: ...

    def publish(self, *, if_absent: bool = True) -> None:
        """Make the object visible, whole.

        Atomicity: readers and `list` see nothing before and everything after.
        Durability: on return the bytes survive what `Capabilities.survives` says.
        Raises: AlreadyExistsError when `if_absent` and the key is taken (the upload is aborted); as of `put`, a retry's
        own lost answer may be the cause.
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

        Raises: AlreadyExistsError when `if_absent` and the key is taken, by an object that is durable now. Where a
        retry's own lost answer may be the cause, the caller compares the bytes.
        """

    def upload(self, key: str, size_bytes: int) -> Upload:
        """Begin writing an object of exactly `size_bytes`. Raises: TierFullError where room is known to lack."""

    def read_into(self, key: str, offset: int, buffer: Buffer, *, cached: bool = False) -> None:
        """Fill `buffer` with the object's bytes from `offset`. Never short.

        `cached`: bytes that a cache of this node happens to hold will do. Otherwise the place itself is asked, where
        the backend can: what proves that a copy still stands must not look at a cache.

        Raises: NotFoundError; CorruptError when the object ends before the range does.
        """

    def size(self, key: str) -> int:
        """Length of the object in bytes. Raises: NotFoundError."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every published object whose key starts with `prefix`, in key order. Unfinished uploads never show.

        Raises: TierError when the place itself has gone: that is not to hold nothing.
        """

    def delete(self, key: str) -> None:
        """Remove an object, durably. Idempotent: deleting what is not there succeeds."""

    def settle(self, prefix: str) -> None:
        """Make durable what is listed under `prefix`, whoever published it.

        Why: who publishes may be killed between the name's appearing and its being durable. What is found by listing
        is settled before anything durable is built on it. Idempotent; nothing under the prefix is no error.
        """

    def sweep(self, *, owner_prefix: str | None = None, untouched_s: float = 0.0) -> int:
        """Remove left-over unfinished uploads, of `owner_prefix` or (None) of all; never those of this tier's owner.

        With `untouched_s` only those nobody wrote to for so long, by the tier's own clock. Returns how many.
        """

    def close(self) -> None:
        """Release descriptors and threads. Idempotent."""


ABANDONED_S = 3600.0
"""An unfinished upload that nobody wrote to for so long has no living owner: a flush writes every few milliseconds."""

TEMPORARY = ".tmp"
"""First component of no key: where backends keep what is not published yet."""


def check_key(key: str, tier: str) -> None:
    """Refuse a key that could leave the tier's room or name two objects.

    Raises: UsageError.
    """
    parts = key.split("/")
    bad = any(part in ("", ".", "..") for part in parts) or parts[0] == TEMPORARY or "\0" in key
    if bad or not key.isprintable():
        raise UsageError(
            f"{key!r} is not a key", hint="keys are names joined by single slashes, without . and ..", tier=tier
        )


class Coverage:
    """Which bytes of an upload have been written. Threads: any.

    Invariant: holds each written range once; a range written again replaces itself.
    """

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._stops: dict[int, int] = {}
        self._lock = threading.Lock()

    def check(self, offset: int, n_bytes: int, *, tier: str, key: str) -> None:
        """Raises: UsageError when the range does not lie inside the object."""
        if offset < 0 or offset + n_bytes > self.size_bytes:
            raise UsageError(
                f"bytes {offset} to {offset + n_bytes} lie outside an object of {self.size_bytes}", tier=tier, key=key
            )

    def add(self, offset: int, n_bytes: int) -> None:
        with self._lock:
            self._stops[offset] = max(self._stops.get(offset, 0), offset + n_bytes)

    def hole(self) -> int | None:
        """The first byte not written yet, None when all are."""
        reached = 0
        with self._lock:
            ranges = sorted(self._stops.items())
        for start, stop in ranges:
            if start > reached:
                break
            reached = max(reached, stop)
        return reached if reached < self.size_bytes else None

    def require_whole(self, *, tier: str, key: str) -> None:
        """Raises: TierError naming the first hole."""
        hole = self.hole()
        if hole is not None:
            raise TierError(f"published before byte {hole} of {self.size_bytes} was written", tier=tier, key=key)


def read_all(tier: Tier, key: str) -> bytearray:
    """The whole of a small object."""
    out = bytearray(tier.size(key))
    tier.read_into(key, 0, memoryview(out))
    return out
