"""The measurement: sizes and calls at once in turn, each within its share of the time."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from holdfast.errors import CorruptError, DeadlineError, UsageError
from holdfast.format.checksum import crc64nvme
from holdfast.store.blocks import aligned_buffer
from holdfast.store.figures import Bandwidth, Latency
from holdfast.store.measure.leftovers import Room, empty, marker
from holdfast.tiers.contract import Buffer, Tier, Upload
from holdfast.units import format_bytes

Say = Callable[[float, str], None]
"""Told how much of the time is used (0 to 1) and what is measured now."""

_SIZES_BYTES = (1 << 20, 16 << 20, 256 << 20)
_CALLS = (1, 2, 4, 8)
_SMALL_BYTES = 4096
_MOST_SMALL = 200
_MOST_LARGE = 20
_OVERTIME = 2.0
"""A tier so slow that even one sample takes longer ends the measurement at this multiple of the time asked for."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds it may take and bytes it may occupy at once."""

    seconds: float
    space_bytes: int


@dataclass
class Measure:
    """One measurement of one tier, which has a room of its own there.

    Invariants: never more than `space_bytes` stand there; `clean` leaves nothing. Threads: `stop` from any.
    """

    tier: Tier
    room: Room
    limits: Limits
    say: Say = lambda share, what: None
    bandwidth: list[Bandwidth] = field(default_factory=list)
    latency: list[Latency] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        part_bytes = min(self.tier.capabilities.part_bytes, self.limits.space_bytes)
        if part_bytes < _SIZES_BYTES[0]:
            raise UsageError(
                f"{self.limits.space_bytes} bytes are too little to measure with", hint="give 1 MiB or more"
            )
        self._part_bytes = part_bytes
        self._source = aligned_buffer(part_bytes)
        self._source[:] = (os.urandom(1 << 20) * -(-part_bytes // (1 << 20)))[:part_bytes]
        self._targets = [aligned_buffer(part_bytes) for _ in range(max(_CALLS))]
        for target in self._targets:
            target[:] = self._source  # faulted once: a page fault costs ten times the copy
        self._stopped = threading.Event()
        self._began = time.monotonic()

    def stop(self) -> None:
        """No further call begins."""
        self._stopped.set()

    def run(self) -> None:
        """Measure everything. What does not fit space or time is left out, and noted.

        Raises: DeadlineError when it was stopped, or the tier is too slow for one sample; TierError.
        """
        self._began = time.monotonic()
        self.tier.put(marker(self.room), self._source[:64])
        self._small()
        try:
            self._large()
        finally:
            self.stop()

    def clean(self) -> None:
        """Remove what stands there, unfinished uploads too. Idempotent."""
        self.stop()
        empty(self.tier, self.room)

    # Small calls -------------------------------------------------------------------------------------------------
    def _small(self) -> None:
        share_s = self.limits.seconds * 0.25 / 5
        data, target = self._source[:_SMALL_BYTES], aligned_buffer(_SMALL_BYTES)
        keys: list[str] = []

        def put(number: int) -> None:
            self.tier.put(self._key("small", number), data)
            keys.append(self._key("small", number))

        def create(number: int) -> None:
            self.tier.put(self._key("once", number), data, if_absent=True)

        prefix = f"{self.room.prefix}small/"
        self._time("put", put, share_s)
        self._time("put_if_absent", create, share_s)
        self._time("read", lambda n: self.tier.read_into(keys[n % len(keys)], 0, target), share_s)
        self._time("list", lambda n: sum(1 for _ in self.tier.list(prefix)), share_s, keys=len(keys))
        self._time("delete", lambda n: self.tier.delete(keys[n]), share_s, most=len(keys))

    def _time(
        self, operation: str, call: Callable[[int], object], share_s: float, *, keys: int = 0, most: int = _MOST_SMALL
    ) -> None:
        self._tell(f"{operation} of a small object" if not keys else f"{operation} of {keys} keys")
        taken: list[float] = []
        end = time.monotonic() + share_s
        while len(taken) < most and (not taken or time.monotonic() < end):
            self._check()
            began = time.monotonic()
            call(len(taken))
            taken.append(time.monotonic() - began)
        ordered = sorted(taken)
        p95_s = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
        size_bytes = 0 if operation == "list" else _SMALL_BYTES
        self.latency.append(Latency(operation, size_bytes, keys, statistics.median(taken), p95_s, len(taken)))

    # Large objects -----------------------------------------------------------------------------------------------
    def _large(self) -> None:
        cells = [(size, calls) for size in _SIZES_BYTES for calls in _CALLS]
        fits = [cell for cell in cells if self._objects(*cell) * cell[0] <= self.limits.space_bytes]
        if len(fits) < len(cells):
            need = format_bytes(max(self._objects(*cell) * cell[0] for cell in cells))
            left_out = len(cells) - len(fits)
            self.notes.append(
                f"{left_out} of {len(cells)} pairs of size and calls left out for want of space: all need {need}"
            )
        late: list[str] = []
        for number, (size_bytes, calls) in enumerate(fits):
            left_s = max(0.0, self._began + self.limits.seconds - time.monotonic())
            share_s = left_s / (len(fits) - number)
            if left_s == 0.0 or self._expected_s(size_bytes, calls) > left_s:
                late.append(f"{format_bytes(size_bytes)} x {calls}")
                continue
            self._cell(size_bytes, calls, share_s)
        if late:
            self.notes.append(f"no time was left for {', '.join(late)} calls at once; --seconds gives more")

    def _objects(self, size_bytes: int, calls: int) -> int:
        """How many objects at once keep so many calls busy: one large one has parts enough by itself."""
        parts = -(-size_bytes // self._part_bytes)
        return -(-calls // parts)

    def _expected_s(self, size_bytes: int, calls: int) -> float:
        """How long one sample will take, by what the samples before it have shown."""
        known = [b.bytes_per_s for b in self.bandwidth if b.direction == "write"]
        return 2 * self._objects(size_bytes, calls) * size_bytes / max(known) if known else 0.0

    def _cell(self, size_bytes: int, calls: int, share_s: float) -> None:
        """Write and read in turn, so that both see the same minutes; the objects of a sample go before the next."""
        keys = [self._key(f"large-{size_bytes}", n) for n in range(self._objects(size_bytes, calls))]
        written: list[float] = []
        read: list[float] = []
        published: list[float] = []
        end = time.monotonic() + share_s
        while len(written) < _MOST_LARGE and (not written or time.monotonic() < end):
            self._tell(f"{size_bytes >> 20} MiB objects, {calls} calls at once")
            began = time.monotonic()
            published += self._write(keys, size_bytes, calls)
            written.append(len(keys) * size_bytes / (time.monotonic() - began))
            began = time.monotonic()
            self._read(keys, size_bytes, calls)
            read.append(len(keys) * size_bytes / (time.monotonic() - began))
            for key in keys:
                self.tier.delete(key)
        publish_s = statistics.median(published)
        self.bandwidth.append(_bandwidth("write", size_bytes, calls, written, publish_s))
        self.bandwidth.append(_bandwidth("read", size_bytes, calls, read, None))

    def _write(self, keys: list[str], size_bytes: int, calls: int) -> list[float]:
        """Objects by parts, `calls` at once. Returns how long each took to be published."""
        uploads: list[Upload] = []
        took: list[float] = []

        def publish(upload: Upload) -> None:
            began = time.monotonic()
            upload.publish()
            took.append(time.monotonic() - began)

        try:
            for key in keys:
                uploads.append(self.tier.upload(key, size_bytes))
            starts = range(0, size_bytes, self._part_bytes)
            parts = [partial(u.write, s, self._part(s, size_bytes)) for u in uploads for s in starts]
            self._at_once(calls, parts)
            self._at_once(calls, [partial(publish, u) for u in uploads])
        finally:
            for upload in uploads:
                upload.abort()
        return took

    def _read(self, keys: list[str], size_bytes: int, calls: int) -> None:
        starts = range(0, size_bytes, self._part_bytes)
        parts = [partial(self._read_part, key, start, size_bytes) for key in keys for start in starts]
        self._at_once(calls, parts)

    def _read_part(self, key: str, start: int, size_bytes: int) -> None:
        source, whole = self._part(start, size_bytes), self._targets.pop()
        try:
            target = whole[: len(source)]
            self.tier.read_into(key, start, target)
            if crc64nvme(target) != crc64nvme(source):
                raise CorruptError(
                    f"other bytes came back than were written, in the part at byte {start}",
                    hint="this place cannot hold checkpoints: look at its disk and its memory",
                    tier=self.tier.name,
                    key=key,
                )
        finally:
            self._targets.append(whole)

    def _part(self, start: int, size_bytes: int) -> Buffer:
        return self._source[: min(self._part_bytes, size_bytes - start)]

    def _at_once(self, calls: int, work: Sequence[Callable[[], None]]) -> None:
        """All of the work, by so many workers. The first error ends it; a call that hangs is left to itself."""
        queue, lock, errors = iter(work), threading.Lock(), list[BaseException]()

        def worker() -> None:
            try:
                while not errors:
                    self._check()
                    with lock:
                        call = next(queue, None)
                    if call is None:
                        return
                    call()
            except Exception as e:
                errors.append(e)

        threads = [threading.Thread(target=worker, daemon=True) for _ in range(min(calls, len(work)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, self._end() - time.monotonic()))
        if errors:
            raise errors[0]
        if any(thread.is_alive() for thread in threads):
            raise self._too_slow()

    def _end(self) -> float:
        return self._began + _OVERTIME * self.limits.seconds + 1.0

    def _too_slow(self) -> DeadlineError:
        return DeadlineError(
            f"one sample took longer than {_OVERTIME * self.limits.seconds:g} s",
            hint="give more time with --seconds, or less to move with --space; if the tier hangs, look at it first",
            tier=self.tier.name,
        )

    def _check(self) -> None:
        if self._stopped.is_set():
            raise DeadlineError("the measurement was stopped")
        if time.monotonic() > self._end():
            raise self._too_slow()

    def _tell(self, what: str) -> None:
        self._check()
        self.say(min(1.0, (time.monotonic() - self._began) / self.limits.seconds), what)

    def _key(self, kind: str, number: int) -> str:
        return f"{self.room.prefix}{kind}/{number:05d}"


def _bandwidth(direction: str, size_bytes: int, calls: int, samples: list[float], publish_s: float | None) -> Bandwidth:
    return Bandwidth(
        direction, size_bytes, calls, statistics.median(samples), min(samples), max(samples), len(samples), publish_s
    )
