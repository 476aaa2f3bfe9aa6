"""Retry: what may succeed a little later is asked again, bounded in number and time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from holdfast.errors import AlreadyExistsError, HoldfastError, NotFoundError
from holdfast.tiers.contract import Buffer, ObjectInfo, Tier, Upload, read_all
from holdfast.tiers.wrappers.base import WrappedTier, WrappedUpload

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long.

    Formula: before attempt n+1 wait uniform(0, min(cap_s, base_s * 2**(n-1))).
    Valid: n >= 1; never past `deadline_s` after the first attempt began.
    Source: "full jitter", AWS Architecture Blog, Exponential Backoff And Jitter.
    """

    attempts: int = 6
    base_s: float = 0.1
    cap_s: float = 5.0
    deadline_s: float = 60.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    random: Callable[[], float] = random.random

    def run(self, call: Callable[[], T], *, on_retry: Callable[[], None] = lambda: None) -> T:
        """`call()` until it succeeds, fails for good, or patience ends; `on_retry` hears of each failure.

        Raises: the last error, saying how often it was tried.
        """
        began = self.clock()
        for attempt in range(1, self.attempts + 1):
            try:
                return call()
            except HoldfastError as e:
                if not e.retryable:
                    raise
                wait_s = self.random() * min(self.cap_s, self.base_s * 2 ** (attempt - 1))
                spent_s = self.clock() - began
                if attempt == self.attempts or spent_s + wait_s > self.deadline_s:
                    raise _given_up(e, attempt, spent_s) from e
            on_retry()
            self.sleep(wait_s)
        raise AssertionError("unreachable")


def _given_up(e: HoldfastError, attempts: int, spent_s: float) -> HoldfastError:
    message = f"{e.message} (given up after {attempts} attempts in {spent_s:.1f} s)"
    return type(e)(message, hint=e.hint, tier=e.tier, key=e.key, step=e.step)


class Retry(WrappedTier):
    """Asks again after retryable errors.

    A lost answer to a `put` (the call failed, a repetition says "exists") is settled by reading back: equal bytes count
    as ours, anything else stays AlreadyExistsError. Where equal bytes from another writer must not count (the claim of
    an attempt), the bytes have to name their writer. One to a `publish` stays AlreadyExistsError: who uploads has the
    bytes, or what they hash to, and settles it as if another had been quicker.
    """

    def __init__(self, inner: Tier, policy: RetryPolicy | None = None) -> None:
        super().__init__(inner)
        self.policy = policy or RetryPolicy()

    def put(self, key: str, buffer: Buffer, *, if_absent: bool = False) -> None:
        """See Tier.put; a lost answer is settled by comparing the bytes."""
        doubts = _Doubts()
        try:
            self.policy.run(lambda: self.inner.put(key, buffer, if_absent=if_absent), on_retry=doubts.add)
        except AlreadyExistsError:
            if not doubts.any or not self._holds(key, buffer):
                raise

    def upload(self, key: str, size_bytes: int) -> Upload:
        """See Tier.upload."""
        inner = self.policy.run(lambda: self.inner.upload(key, size_bytes))
        return _RetryUpload(self, inner)

    def read_into(self, key: str, offset: int, buffer: Buffer, *, cached: bool = False) -> None:
        """See Tier.read_into."""
        self.policy.run(lambda: self.inner.read_into(key, offset, buffer, cached=cached))

    def size(self, key: str) -> int:
        """See Tier.size."""
        return self.policy.run(lambda: self.inner.size(key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See Tier.list; a listing that breaks off is begun anew and what was told already is passed over."""
        told = ""
        listing: Iterator[ObjectInfo] | None = None

        def following() -> ObjectInfo | None:
            nonlocal listing
            try:
                listing = self.inner.list(prefix) if listing is None else listing
                return next((info for info in listing if info.key > told), None)
            except HoldfastError:
                listing = None
                raise

        while (info := self.policy.run(following)) is not None:
            told = info.key
            yield info

    def delete(self, key: str) -> None:
        """See Tier.delete."""
        self.policy.run(lambda: self.inner.delete(key))

    def settle(self, prefix: str) -> None:
        """See Tier.settle."""
        self.policy.run(lambda: self.inner.settle(prefix))

    def sweep(self, *, owner_prefix: str | None = None, untouched_s: float = 0.0) -> int:
        """See Tier.sweep."""
        return self.policy.run(lambda: self.inner.sweep(owner_prefix=owner_prefix, untouched_s=untouched_s))

    def _holds(self, key: str, buffer: Buffer) -> bool:
        """Whether the object is exactly these bytes."""
        try:
            return self.size(key) == len(buffer) and read_all(self, key) == buffer
        except NotFoundError:
            return False


class _Doubts:
    """Whether an earlier attempt may have worked although it failed."""

    any = False

    def add(self) -> None:
        self.any = True


class _RetryUpload(WrappedUpload):
    """Writes are repeated by part."""

    def __init__(self, tier: Retry, inner: Upload) -> None:
        super().__init__(inner)
        self._tier = tier

    def write(self, offset: int, buffer: Buffer) -> None:
        self._tier.policy.run(lambda: self._inner.write(offset, buffer))

    def publish(self, *, if_absent: bool = True) -> None:
        self._tier.policy.run(lambda: self._inner.publish(if_absent=if_absent))
