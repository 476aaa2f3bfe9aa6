"""A tier whose file system may hang: looking at it ends in time, and what hangs is not asked again until it answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import partial
from typing import Any, TypeVar

from holdfast.errors import TierUnavailableError
from holdfast.tiers.contract import Buffer, ObjectInfo, Tier
from holdfast.tiers.wrappers.base import WrappedTier

T = TypeVar("T")
_THREADS = 2


class Patience:
    """Threads that look at one tier. Invariant: of looks that hang at most one is waited for.

    Threads: any.
    """

    def __init__(self, tier: str) -> None:
        self._tier = tier
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix=f"holdfast-look-{tier}")
        self._hangs: Future[Any] | None = None
        self._lock = threading.Lock()

    def look(self, call: Callable[[], T], limit_s: float, *, late: Callable[[T], None] | None = None) -> T:
        """`call()`, for so long; what it returns after that is given to `late`. Must not be used within `call`.

        Raises: TierUnavailableError when it hangs, or another that did still does; the thread is left to it.
        """
        with self._lock:
            if self._hangs is not None and not self._hangs.done():
                raise self._error("still does not answer")
        future = self._pool.submit(call)
        try:
            return future.result(limit_s)
        except FutureTimeoutError:  # another class than TimeoutError before Python 3.11
            with self._lock:
                self._hangs = future
            if late is not None:
                future.add_done_callback(partial(_pass_on, late))
            raise self._error(f"did not answer within {limit_s:g} s") from None

    def _error(self, text: str) -> TierUnavailableError:
        return TierUnavailableError(text, hint="the file system hangs or is very slow; see dmesg", tier=self._tier)

    def close(self) -> None:
        """Wait for what still runs."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _pass_on(late: Callable[[T], None], future: Future[T]) -> None:
    if not future.cancelled() and future.exception() is None:
        late(future.result())


class PatientTier(WrappedTier):
    """Looks at a tier through a `Patience`; everything else is passed on."""

    def __init__(self, inner: Tier, patience: Patience, limit_s: float) -> None:
        super().__init__(inner)
        self._patience, self._limit_s = patience, limit_s

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See Tier.list."""
        return iter(self._patience.look(lambda: [*self.inner.list(prefix)], self._limit_s))

    def size(self, key: str) -> int:
        """See Tier.size."""
        return self._patience.look(lambda: self.inner.size(key), self._limit_s)

    def read_into(self, key: str, offset: int, buffer: Buffer, *, cached: bool = False) -> None:
        """See Tier.read_into. After an error bytes may still come into the buffer: it is worth nothing."""
        self._patience.look(lambda: self.inner.read_into(key, offset, buffer, cached=cached), self._limit_s)
