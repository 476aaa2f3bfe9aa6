"""Throttle: no more bytes per second than allowed, shared by all threads of one tier."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from holdfast.errors import TierError
from holdfast.tiers.contract import Buffer, Tier, Upload
from holdfast.tiers.wrappers.base import WrappedTier, WrappedUpload

Sleep = Callable[[float], None]


class TokenBucket:
    """Tokens are bytes; they come at `bytes_per_s` (None: no limit) up to `burst_bytes`, and may be owed.

    Invariant: over any span of t seconds at most burst_bytes + t * bytes_per_s pass, plus one call's excess over the
    burst (a call larger than the burst passes whole and leaves a debt).
    Threads: any; nobody sleeps holding the lock, and who waits is woken by `wake` and `set_rate`.
    """

    def __init__(
        self,
        bytes_per_s: float | None,
        *,
        burst_bytes: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep | None = None,
    ) -> None:
        self._rate, self._burst = bytes_per_s, float(burst_bytes)
        self._clock, self._sleep = clock, sleep
        self._changed = threading.Condition()
        self._tokens, self._filled_s = self._burst, clock()

    @property
    def bytes_per_s(self) -> float | None:
        return self._rate

    def take(self, n_bytes: int, given_up: Callable[[], bool] = lambda: False) -> bool:
        """Wait until `n_bytes` may pass. False when `given_up` became true: they count as not taken then.

        A limit that is changed meanwhile counts from the next call on; one that is lifted counts no more at once.
        """
        with self._changed:
            if self._rate is None:
                return not given_up()
            self._refill(self._rate)
            self._tokens -= n_bytes
            wait_s = max(0.0, -self._tokens / self._rate)
            if self._sleep is None and wait_s:
                self._changed.wait_for(lambda: self._rate is None or given_up(), wait_s)
        if self._sleep is not None and wait_s:
            self._sleep(wait_s)
        if given_up():
            with self._changed:
                self._tokens += n_bytes
            return False
        return True

    def _refill(self, rate: float) -> None:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled_s) * rate)
        self._filled_s = now

    def set_rate(self, bytes_per_s: float | None) -> None:
        """Another limit from now on; what is owed stays owed, but for no limit at all."""
        with self._changed:
            if self._rate is not None:
                self._refill(self._rate)
            self._rate, self._filled_s = bytes_per_s, self._clock()
            if bytes_per_s is None:
                self._tokens = self._burst
            self._changed.notify_all()

    def wake(self) -> None:
        """Something became true that a `given_up` looks at."""
        with self._changed:
            self._changed.notify_all()


class Throttle(WrappedTier):
    """Limits bytes per second written, read, or both (None: no limit). Metadata calls pass freely.

    Whoever waits when the tier is closed, or when its upload is aborted, gets a TierError at once.
    """

    def __init__(
        self,
        inner: Tier,
        *,
        write_bytes_per_s: float | None = None,
        read_bytes_per_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep | None = None,
    ) -> None:
        super().__init__(inner)
        burst = inner.capabilities.part_bytes
        self._writes = TokenBucket(write_bytes_per_s, burst_bytes=burst, clock=clock, sleep=sleep)
        self._reads = TokenBucket(read_bytes_per_s, burst_bytes=burst, clock=clock, sleep=sleep)
        self._closed = False

    @property
    def write_bytes_per_s(self) -> float | None:
        return self._writes.bytes_per_s

    def limit_writes(self, bytes_per_s: float | None) -> None:
        """Another limit from now on, for writes under way, too."""
        if bytes_per_s != self._writes.bytes_per_s:
            self._writes.set_rate(bytes_per_s)

    def put(self, key: str, buffer: Buffer, *, if_absent: bool = False) -> None:
        """See Tier.put."""
        self.take_write(len(buffer), key)
        self.inner.put(key, buffer, if_absent=if_absent)

    def upload(self, key: str, size_bytes: int) -> Upload:
        """See Tier.upload."""
        return _ThrottledUpload(self, self.inner.upload(key, size_bytes), key)

    def read_into(self, key: str, offset: int, buffer: Buffer, *, cached: bool = False) -> None:
        """See Tier.read_into."""
        if not self._reads.take(len(buffer), lambda: self._closed):
            raise self._stopped("closed", key)
        self.inner.read_into(key, offset, buffer, cached=cached)

    def close(self) -> None:
        """See Tier.close."""
        self._closed = True
        self.wake()
        self._reads.wake()
        self.inner.close()

    def wake(self) -> None:
        """Have those who wait to write look whether they still should."""
        self._writes.wake()

    def take_write(self, n_bytes: int, key: str, aborted: Callable[[], bool] = lambda: False) -> None:
        """Wait until `n_bytes` may be written. Raises: TierError when that is over before."""
        if not self._writes.take(n_bytes, lambda: self._closed or aborted()):
            raise self._stopped("closed" if self._closed else "aborted", key)

    def _stopped(self, how: str, key: str) -> TierError:
        return TierError(f"{how} while it waited for bandwidth", tier=self.name, key=key)


class _ThrottledUpload(WrappedUpload):
    def __init__(self, tier: Throttle, inner: Upload, key: str) -> None:
        super().__init__(inner)
        self._tier, self._key = tier, key
        self._aborted = False

    def write(self, offset: int, buffer: Buffer) -> None:
        self._tier.take_write(len(buffer), self._key, lambda: self._aborted)
        self._inner.write(offset, buffer)

    def abort(self) -> None:
        self._aborted = True
        self._tier.wake()
        self._inner.abort()
