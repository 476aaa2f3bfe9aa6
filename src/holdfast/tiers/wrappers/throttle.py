"""Throttle: no more bytes per second than allowed, shared by all threads of one tier."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from holdfast.tiers.contract import Buffer, Tier, Upload
from holdfast.tiers.wrappers.base import WrappedTier, WrappedUpload


class TokenBucket:
    """Tokens are bytes; they come at `bytes_per_s` up to `burst_bytes`, and may be owed.

    Invariant: over any span of t seconds at most burst_bytes + t * bytes_per_s pass, plus one call's excess over the
    burst (a call larger than the burst passes whole and leaves a debt). Threads: any; they wait outside the lock.
    """

    def __init__(
        self,
        bytes_per_s: float,
        *,
        burst_bytes: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate, self._burst = bytes_per_s, float(burst_bytes)
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._tokens, self._filled_s = self._burst, clock()

    def take(self, n_bytes: int) -> None:
        """Wait until `n_bytes` may pass."""
        with self._lock:
            now = self._clock()
            self._tokens = min(self._burst, self._tokens + (now - self._filled_s) * self._rate)
            self._filled_s = now
            self._tokens -= n_bytes
            wait_s = max(0.0, -self._tokens / self._rate)
        if wait_s:
            self._sleep(wait_s)


class Throttle(WrappedTier):
    """Limits bytes per second written, read, or both (None: no limit). Metadata calls pass freely."""

    def __init__(
        self,
        inner: Tier,
        *,
        write_bytes_per_s: float | None = None,
        read_bytes_per_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(inner)
        burst = inner.capabilities.part_bytes

        def bucket(rate: float | None) -> Callable[[int], None]:
            if rate is None:
                return lambda n_bytes: None
            return TokenBucket(rate, burst_bytes=burst, clock=clock, sleep=sleep).take

        self._take_write, self._take_read = bucket(write_bytes_per_s), bucket(read_bytes_per_s)

    def put(self, key: str, buffer: Buffer, *, if_absent: bool = False) -> None:
        """See Tier.put."""
        self._take_write(len(buffer))
        self.inner.put(key, buffer, if_absent=if_absent)

    def upload(self, key: str, size_bytes: int) -> Upload:
        """See Tier.upload."""
        return _ThrottledUpload(self.inner.upload(key, size_bytes), self._take_write)

    def read_into(self, key: str, offset: int, buffer: Buffer) -> None:
        """See Tier.read_into."""
        self._take_read(len(buffer))
        self.inner.read_into(key, offset, buffer)


class _ThrottledUpload(WrappedUpload):
    def __init__(self, inner: Upload, take: Callable[[int], None]) -> None:
        super().__init__(inner)
        self._take = take

    def write(self, offset: int, buffer: Buffer) -> None:
        self._take(len(buffer))
        self._inner.write(offset, buffer)
