"""The memory tier: images in slots of the node's shared memory, small objects beside them.

Where slots come from is the `SlotSource`'s affair: the agent's arena, or `HeapSlots` where nothing has to outlive the
process.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from holdfast.errors import AlreadyExistsError, CorruptError, NotFoundError, TierError, TierFullError
from holdfast.model.place import FailureDomain, Scope
from holdfast.tiers.contract import Buffer, Capabilities, Coverage, ObjectInfo, check_key


class SlotHandle(Protocol):
    """Room for one object, owned by one upload until it is published or aborted."""

    @property
    def buffer(self) -> Buffer:
        """Writable, exactly as long as was asked for."""


class SlotSource(Protocol):
    """Whoever owns the memory. Every method may be called from any thread."""

    def allocate(self, key: str, size_bytes: int) -> SlotHandle:
        """Room for `size_bytes`, not findable yet. Raises: TierFullError."""

    def publish(self, slot: SlotHandle, *, if_absent: bool) -> None:
        """Make the slot findable under its key; a replaced one is freed.

        Raises: AlreadyExistsError; the slot is still the upload's then.
        """

    def abort(self, slot: SlotHandle) -> None:
        """Give the room of an unpublished slot back. Idempotent."""

    def hold(self, key: str) -> AbstractContextManager[Buffer | None]:
        """The published bytes, which stay as they are inside the `with`, even if freed meanwhile; None: no such key."""

    def keys(self) -> Iterable[tuple[str, int]]:
        """(key, bytes) of everything published."""

    def free(self, key: str) -> None:
        """Give the room of a published slot back once nobody holds it. Idempotent."""

    def sweep(self, owner_prefix: str | None) -> int:
        """Give back unpublished slots of dead owners. Returns how many."""

    def close(self) -> None:
        """Let go of the memory without freeing what is published. Idempotent."""


@dataclass(slots=True, eq=False)
class _HeapSlot:
    key: str
    buffer: Buffer


class HeapSlots:
    """Slots on the heap of this process, within a budget."""

    def __init__(self, budget_bytes: int | None = None) -> None:
        self._budget_bytes = budget_bytes
        self._lock = threading.Lock()
        self._published: dict[str, _HeapSlot] = {}
        self._pending: set[_HeapSlot] = set()

    def allocate(self, key: str, size_bytes: int) -> _HeapSlot:
        """A zeroed slot. Raises: TierFullError."""
        with self._lock:
            used = sum(len(s.buffer) for s in (*self._published.values(), *self._pending))
            if self._budget_bytes is not None and used + size_bytes > self._budget_bytes:
                raise TierFullError(
                    f"{size_bytes} bytes do not fit: {used} of {self._budget_bytes} are in use", key=key
                )
            slot = _HeapSlot(key, memoryview(bytearray(size_bytes)))
            self._pending.add(slot)
            return slot

    def publish(self, slot: SlotHandle, *, if_absent: bool) -> None:
        """Make it findable. Raises: AlreadyExistsError."""
        assert isinstance(slot, _HeapSlot)
        with self._lock:
            if if_absent and slot.key in self._published:
                raise AlreadyExistsError("the key is taken", key=slot.key)
            self._pending.discard(slot)
            self._published[slot.key] = slot

    def abort(self, slot: SlotHandle) -> None:
        """Drop an unpublished slot."""
        assert isinstance(slot, _HeapSlot)
        with self._lock:
            self._pending.discard(slot)

    @contextlib.contextmanager
    def hold(self, key: str) -> Iterator[Buffer | None]:
        """The published bytes; a freed slot lives on as long as somebody looks at it."""
        slot = self._published.get(key)
        yield None if slot is None else slot.buffer

    def keys(self) -> list[tuple[str, int]]:
        """Everything published."""
        with self._lock:
            return [(key, len(slot.buffer)) for key, slot in self._published.items()]

    def free(self, key: str) -> None:
        """Drop a published slot."""
        with self._lock:
            self._published.pop(key, None)

    def sweep(self, owner_prefix: str | None) -> int:
        """Nothing outlives its owner here: every pending slot is somebody's live upload."""
        return 0

    def close(self) -> None:
        """The memory goes with the object."""


class MemoryTier:
    """A tier over slots; small objects in a dictionary of this process. Threads: any."""

    def __init__(self, slots: SlotSource, *, name: str = "memory") -> None:
        self.name = name
        self.capabilities = Capabilities(
            scope=Scope.NODE,
            survives=FailureDomain.PROCESS,
            alignment_bytes=64,
            part_bytes=64 << 20,
            concurrency=2,
            atomic_create=True,
        )
        self._slots = slots
        self._small: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def put(self, key: str, buffer: Buffer, *, if_absent: bool = False) -> None:
        """Keep a copy of the bytes.

        Atomicity: one lock. Durability: none beyond this process. Idempotent: without `if_absent`.
        """
        check_key(key, self.name)
        with self._lock:
            if if_absent and self._has(key):
                raise AlreadyExistsError("the key is taken", tier=self.name, key=key)
            self._small[key] = bytes(buffer)
            self._slots.free(key)

    def upload(self, key: str, size_bytes: int) -> MemoryUpload:
        """Take a slot. Raises: TierFullError."""
        check_key(key, self.name)
        try:
            slot = self._slots.allocate(key, size_bytes)
        except TierFullError as e:
            e.tier = self.name
            raise
        return MemoryUpload(self, slot, key, size_bytes)

    def read_into(self, key: str, offset: int, buffer: Buffer, *, cached: bool = False) -> None:
        """Copy out of the slot while it is held."""
        check_key(key, self.name)
        with self._hold(key) as data:
            if offset + len(buffer) > len(data):
                raise CorruptError(f"the object ends at byte {len(data)}", tier=self.name, key=key)
            buffer[:] = data[offset : offset + len(buffer)]

    def size(self, key: str) -> int:
        """Length of the object in bytes."""
        check_key(key, self.name)
        with self._hold(key) as data:
            return len(data)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """A snapshot of slots and small objects."""
        with self._lock:
            found = dict(self._slots.keys()) | {key: len(data) for key, data in self._small.items()}
        return (ObjectInfo(key, found[key]) for key in sorted(found) if key.startswith(prefix))

    def delete(self, key: str) -> None:
        """Forget the object. Idempotent; readers that hold it finish."""
        check_key(key, self.name)
        with self._lock:
            self._small.pop(key, None)
            self._slots.free(key)

    def settle(self, prefix: str) -> None:
        """Nothing to do: what can be found survives what memory survives."""

    def sweep(self, *, owner_prefix: str | None = None, untouched_s: float = 0.0) -> int:
        """Give back slots of uploads whose owner is dead: memory knows that for sure, however long ago."""
        return self._slots.sweep(owner_prefix)

    def close(self) -> None:
        """Let go of the slots."""
        self._slots.close()

    def publish(self, slot: SlotHandle, key: str, *, if_absent: bool) -> None:
        """For MemoryUpload: make a slot visible. Raises: AlreadyExistsError."""
        with self._lock:
            if if_absent and self._has(key):
                raise AlreadyExistsError("the key is taken", tier=self.name, key=key)
            self._slots.publish(slot, if_absent=if_absent)
            self._small.pop(key, None)

    def abort_slot(self, slot: SlotHandle) -> None:
        """For MemoryUpload: give a slot back."""
        self._slots.abort(slot)

    def _has(self, key: str) -> bool:
        with self._slots.hold(key) as data:
            return data is not None or key in self._small

    @contextlib.contextmanager
    def _hold(self, key: str) -> Iterator[Buffer]:
        small = self._small.get(key)
        with self._slots.hold(key) as data:
            if small is None and data is None:
                raise NotFoundError("no such object", tier=self.name, key=key)
            yield memoryview(small) if small is not None else data  # type: ignore[misc]


class MemoryUpload:
    """A slot being filled. Threads: `write` from many, the rest from one."""

    def __init__(self, tier: MemoryTier, slot: SlotHandle, key: str, size_bytes: int) -> None:
        self._tier, self._slot, self._key = tier, slot, key
        self._covered = Coverage(size_bytes)
        self._state = "open"

    def write(self, offset: int, buffer: Buffer) -> None:
        """Copy into the slot."""
        self._covered.check(offset, len(buffer), tier=self._tier.name, key=self._key)
        self._require("open")
        self._slot.buffer[offset : offset + len(buffer)] = buffer
        self._covered.add(offset, len(buffer))

    def publish(self, *, if_absent: bool = True) -> None:
        """Make the slot findable. Idempotent after success."""
        self._require("open", "published")
        if self._state == "published":
            return
        self._covered.require_whole(tier=self._tier.name, key=self._key)
        try:
            self._tier.publish(self._slot, self._key, if_absent=if_absent)
        except AlreadyExistsError:
            self.abort()
            raise
        self._state = "published"

    def abort(self) -> None:
        """Give the slot back. Idempotent."""
        if self._state == "open":
            self._state = "aborted"
            self._tier.abort_slot(self._slot)

    def _require(self, *states: str) -> None:
        if self._state not in states:
            raise TierError(
                f"the upload is {self._state}", hint="begin a new upload", tier=self._tier.name, key=self._key
            )
