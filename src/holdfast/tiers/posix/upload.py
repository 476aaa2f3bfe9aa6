"""An image on its way into a posix tier."""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager
from enum import Enum
from typing import TYPE_CHECKING

from holdfast.errors import AlreadyExistsError, HoldfastError, TierError, UsageError
from holdfast.tiers.contract import Buffer, Coverage
from holdfast.tiers.posix.disk import File, reserve
from holdfast.tiers.posix.translate import translated

if TYPE_CHECKING:
    from holdfast.tiers.posix.tier import PosixTier


class _State(Enum):
    OPEN = "open"
    SYNCING = "being published"
    SYNCED = "synced"  # the bytes are on the disk, under the temporary name
    MOVED = "moved"  # visible; the directory may not know it durably yet
    DONE = "published"
    GONE = "aborted"
    BROKEN = "broken by a failed fsync"


class PosixUpload:
    """A temporary file until `publish`.

    Invariants: descriptors close when the last writer has left, never under one; the temporary file is gone in
    MOVED, DONE, GONE and BROKEN. Threads: `write` from many, `publish` from one, `abort` from any.
    """

    def __init__(self, tier: PosixTier, key: str, size_bytes: int, temporary: str, *, recycled: bool = False) -> None:
        self._tier, self._key, self._temporary = tier, key, temporary
        self._covered = Coverage(size_bytes)
        self._lock = threading.Lock()
        self._writers = 0
        self._broken_by: HoldfastError | None = None
        self._state = _State.OPEN
        try:
            with self._translated():
                create = 0 if recycled else os.O_CREAT | os.O_EXCL
                self._file = File(temporary, os.O_RDWR | create, direct=tier.direct)
        except HoldfastError:
            tier.forget(temporary)
            raise
        try:
            with self._translated():
                reserve(self._file.fd, size_bytes)
        except HoldfastError:
            self.abort()
            raise

    def write(self, offset: int, buffer: Buffer) -> None:
        """Write `buffer` at `offset`: past the page cache where address, offset and length are aligned."""
        self._covered.check(offset, len(buffer), tier=self._tier.name, key=self._key)
        with self._lock:
            self._require(_State.OPEN)
            self._writers += 1
        try:
            self._tier.with_room(lambda: self._write(offset, buffer))
            self._covered.add(offset, len(buffer))
        finally:
            with self._lock:
                self._writers -= 1
                self._close_if_left()

    def _write(self, offset: int, buffer: Buffer) -> None:
        with self._translated():
            self._file.write(offset, buffer)

    def publish(self, *, if_absent: bool = True) -> None:
        """Make the object visible: fsync, rename without replacing, fsync of the directories.

        Atomicity: rename. Durability: on return file, name and every directory above survive a power cut.
        Idempotent: goes on where a failed call stood; after success it does nothing.
        """
        self._require(_State.OPEN, _State.SYNCED, _State.MOVED, _State.DONE)
        if self._state is _State.OPEN:
            self._covered.require_whole(tier=self._tier.name, key=self._key)
            self._sync()
        if self._state is _State.SYNCED:
            self._move(if_absent)
        if self._state is _State.MOVED:
            with self._translated():
                self._tier.sync_directory_of(self._key)
            self._state = _State.DONE
        self._require(_State.DONE)  # not so when aborted meanwhile

    def abort(self) -> None:
        """Remove the temporary file. Idempotent."""
        with self._lock:
            was = self._state
            if was in (_State.OPEN, _State.SYNCING, _State.SYNCED):
                self._state = _State.GONE
                self._tier.forget(self._temporary)
            if was is not _State.SYNCING:  # else closing is for the one that syncs
                self._close_if_left()

    def _sync(self) -> None:
        with self._lock:
            self._require(_State.OPEN)
            if self._writers:
                raise UsageError("published while a write is under way", tier=self._tier.name, key=self._key)
            self._state = _State.SYNCING
        # After a failed fsync the kernel has dropped the pages and calls them clean; a second fsync would lie.
        became = _State.BROKEN
        try:
            with self._translated():
                self._tier.fsync(self._file.fd)
            became = _State.SYNCED
        except HoldfastError as e:
            self._broken_by = e
            raise
        finally:
            with self._lock:
                if self._state is _State.SYNCING:
                    self._state = became
                if self._state is _State.BROKEN:
                    self._tier.forget(self._temporary)
                self._file.close()

    def _move(self, if_absent: bool) -> None:
        try:
            self._tier.with_room(lambda: self._give_name(if_absent))
        except AlreadyExistsError:
            self.abort()
            raise
        self._state = _State.MOVED
        self._tier.forget(self._temporary)

    def _give_name(self, if_absent: bool) -> None:
        with self._translated():
            self._tier.move(self._temporary, self._key, if_absent=if_absent)

    def _require(self, *states: _State) -> None:
        if self._state not in states:
            why = f": {self._broken_by.message}" if self._broken_by is not None else ""
            hint = (self._broken_by and self._broken_by.hint) or "begin a new upload"
            raise TierError(f"the upload is {self._state.value}{why}", hint=hint, tier=self._tier.name, key=self._key)

    def _close_if_left(self) -> None:
        if self._writers == 0 and self._state not in (_State.OPEN, _State.SYNCING):
            self._file.close()

    def _translated(self) -> AbstractContextManager[None]:
        return translated(self._tier.name, self._key, self._tier.root)
