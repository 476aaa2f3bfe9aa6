"""Faults: a tier that fails as told, and counts, so that a test can prove its fault really fired."""

from __future__ import annotations

import copy
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from holdfast.errors import AlreadyExistsError, TierFullError, TierUnavailableError
from holdfast.tiers.contract import Buffer, ObjectInfo, Tier, Upload
from holdfast.tiers.wrappers.base import WrappedTier, WrappedUpload

T = TypeVar("T")


class Action(Protocol):
    """What goes wrong. `before` runs ahead of the call, `after` behind a call that worked.

    `buffer` is what is written, or what was read; None for calls without bytes.
    """

    def before(self, buffer: Buffer | None) -> None: ...
    def after(self, buffer: Buffer | None) -> None: ...


class _Nothing:
    def before(self, buffer: Buffer | None) -> None:
        """Nothing goes wrong ahead of the call."""

    def after(self, buffer: Buffer | None) -> None:
        """Nothing goes wrong behind the call."""


@dataclass(frozen=True)
class Raise(_Nothing):
    """Fail without doing it."""

    error: BaseException = field(default_factory=lambda: TierUnavailableError("injected"))

    def before(self, buffer: Buffer | None) -> None:
        """Raises: a copy of the error."""
        raise copy.copy(self.error)


@dataclass(frozen=True)
class LoseAnswer(_Nothing):
    """Do it, then fail: the answer is lost. A later `publish` of the same upload is answered "exists"."""

    error: BaseException = field(default_factory=lambda: TierUnavailableError("injected: the answer was lost"))

    def after(self, buffer: Buffer | None) -> None:
        """Raises: a copy of the error."""
        raise copy.copy(self.error)


@dataclass(frozen=True)
class Hang(_Nothing):
    """Take `seconds` before doing it. `sleep` may be an Event's wait, so that a test can end the hang."""

    seconds: float
    sleep: Callable[[float], object] = time.sleep

    def before(self, buffer: Buffer | None) -> None:
        """Waits."""
        self.sleep(self.seconds)


@dataclass(frozen=True)
class Slow(_Nothing):
    """Take as long as the bytes would at `bytes_per_s`."""

    bytes_per_s: float
    sleep: Callable[[float], object] = time.sleep

    def before(self, buffer: Buffer | None) -> None:
        """Waits."""
        self.sleep(len(buffer or b"") / self.bytes_per_s)


@dataclass(frozen=True)
class FlipBit(_Nothing):
    """Flip one bit of what was read; `bit` counts from the start of the buffer, from its end when negative."""

    bit: int = 0

    def after(self, buffer: Buffer | None) -> None:
        """Flips."""
        if buffer:
            at = self.bit % (8 * len(buffer))
            buffer[at // 8] ^= 1 << at % 8


@dataclass
class FullAfter(_Nothing):
    """The disk is full once `n_bytes` have been written."""

    n_bytes: int
    written_bytes: int = 0

    def before(self, buffer: Buffer | None) -> None:
        """Raises: TierFullError."""
        self.written_bytes += len(buffer or b"")
        if self.written_bytes > self.n_bytes:
            raise TierFullError(f"injected: full after {self.n_bytes} bytes")


@dataclass(eq=False)
class Fault:
    """A rule: which calls go wrong, and how.

    Args:
        operation: regex on put, upload, write, publish, abort, read_into, size, list, delete, settle, sweep (whole
            name).
        key: regex searched in the key.
        after: matching calls to let pass first.
        times: how often it fires; None: always.
    """

    operation: str
    action: Action
    key: str = ""
    after: int = 0
    times: int | None = 1
    matched: int = 0
    fired: int = 0

    def fires(self, operation: str, key: str) -> bool:
        """Whether this call is hit; counts."""
        if not re.fullmatch(self.operation, operation) or not re.search(self.key, key):
            return False
        self.matched += 1
        if self.matched <= self.after or (self.times is not None and self.fired >= self.times):
            return False
        self.fired += 1
        return True


class Faults(WrappedTier):
    """A tier with faults; `add` more at any time, `calls` counts every call by operation. Threads: any."""

    def __init__(self, inner: Tier, *faults: Fault) -> None:
        super().__init__(inner)
        self.faults = list(faults)
        self.calls: dict[str, int] = {}
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> Fault:
        """One more fault; returns it, for its `fired`."""
        with self._lock:
            self.faults.append(fault)
        return fault

    def clear(self) -> None:
        """No more faults."""
        with self._lock:
            self.faults.clear()

    def around(self, operation: str, key: str, call: Callable[[], T], buffer: Buffer | None = None) -> T:
        """`call()` with whatever goes wrong before and after it."""
        with self._lock:
            self.calls[operation] = self.calls.get(operation, 0) + 1
            actions = [f.action for f in self.faults if f.fires(operation, key)]
        for action in actions:
            action.before(buffer)
        result = call()
        for action in actions:
            action.after(buffer)
        return result

    def put(self, key: str, buffer: Buffer, *, if_absent: bool = False) -> None:
        """See Tier.put."""
        self.around("put", key, lambda: self.inner.put(key, buffer, if_absent=if_absent), buffer)

    def upload(self, key: str, size_bytes: int) -> Upload:
        """See Tier.upload."""
        return _FaultyUpload(self, self.around("upload", key, lambda: self.inner.upload(key, size_bytes)), key)

    def read_into(self, key: str, offset: int, buffer: Buffer, *, cached: bool = False) -> None:
        """See Tier.read_into."""
        self.around("read_into", key, lambda: self.inner.read_into(key, offset, buffer, cached=cached), buffer)

    def size(self, key: str) -> int:
        """See Tier.size."""
        return self.around("size", key, lambda: self.inner.size(key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See Tier.list."""
        return self.around("list", prefix, lambda: self.inner.list(prefix))

    def delete(self, key: str) -> None:
        """See Tier.delete."""
        self.around("delete", key, lambda: self.inner.delete(key))

    def settle(self, prefix: str) -> None:
        """See Tier.settle."""
        self.around("settle", prefix, lambda: self.inner.settle(prefix))

    def sweep(self, *, owner_prefix: str | None = None, untouched_s: float = 0.0) -> int:
        """See Tier.sweep."""
        return self.around(
            "sweep", owner_prefix or "", lambda: self.inner.sweep(owner_prefix=owner_prefix, untouched_s=untouched_s)
        )


class _FaultyUpload(WrappedUpload):
    def __init__(self, tier: Faults, inner: Upload, key: str) -> None:
        super().__init__(inner)
        self._tier, self._key = tier, key
        self._published = False

    def write(self, offset: int, buffer: Buffer) -> None:
        self._tier.around("write", self._key, lambda: self._inner.write(offset, buffer), buffer)

    def publish(self, *, if_absent: bool = True) -> None:
        self._tier.around("publish", self._key, lambda: self._publish(if_absent))

    def _publish(self, if_absent: bool) -> None:
        if self._published and if_absent:  # as a remote store answers, which does not know who asks again
            raise AlreadyExistsError("the key is taken", tier=self._tier.name, key=self._key)
        self._inner.publish(if_absent=if_absent)
        self._published = True

    def abort(self) -> None:
        self._tier.around("abort", self._key, self._inner.abort)
