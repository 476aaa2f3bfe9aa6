"""What the agent remembers for people: the newest stalls of each rank, the newest flushes to each tier."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator

from holdfast.agent.arena import Slot
from holdfast.agent.launches import Trainer
from holdfast.model.identity import ImageId
from holdfast.wire.pages import SlotState
from holdfast.wire.status import Flush, Stall

KEPT = 120
"""Entries kept per rank and per tier: more than a plot can show, little enough for any number of ranks."""


class StallLog:
    """Sees by the counters on the pages that a save ended. Threads: the agent's event loop only."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[int, int, int]] = {}
        self._stalls: dict[int, deque[Stall]] = {}

    def look(self, trainers: Iterable[Trainer], now_s: float) -> None:
        """One look at every rank's page."""
        for trainer in trainers:
            page = trainer.page
            now = page.pid, page.saves, page.stall_ns
            before = self._seen.get(trainer.rank, now)
            if before is now or before[0] != now[0]:
                # Another process counts from nothing. What an agent before this one saw is told as one mean.
                before = now[0], 0, 0
            if before[2] != now[2]:  # the trainer counts a save before it adds what it took
                self._seen[trainer.rank] = now
                self._note(trainer.rank, now_s, page.current_step, now[1] - before[1], now[2] - before[2])

    def _note(self, rank: int, now_s: float, step: int, saves: int, stall_ns: int) -> None:
        n = max(saves, 1)
        self._stalls.setdefault(rank, deque(maxlen=KEPT)).append(Stall(now_s, step, max(stall_ns, 0) / 1e9 / n, n))

    def stalls(self) -> dict[int, list[Stall]]:
        """Per rank, oldest first."""
        return {rank: list(stalls) for rank, stalls in sorted(self._stalls.items())}


class FlushLog:
    """Notes every flush, also one that fails. Threads: any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: dict[str, tuple[int, float]] = {}
        self._flushes: dict[str, deque[Flush]] = {}

    @contextlib.contextmanager
    def noting(self, tier: str, image: ImageId, size_bytes: int) -> Iterator[None]:
        """Around one flush of an image."""
        began = time.monotonic()
        try:
            yield
        except Exception as e:
            self._note(tier, image, size_bytes, time.monotonic() - began, str(getattr(e, "message", e)))
            raise
        self._note(tier, image, size_bytes, time.monotonic() - began, "")

    def _note(self, tier: str, image: ImageId, size_bytes: int, seconds: float, error: str) -> None:
        told = Flush(time.time(), image.attempt, image.step, image.rank, image.image, size_bytes, seconds, error)
        with self._lock:
            self._flushes.setdefault(tier, deque(maxlen=KEPT)).append(told)
            if not error:
                n_bytes, spent_s = self._totals.get(tier, (0, 0.0))
                self._totals[tier] = (n_bytes + size_bytes, spent_s + seconds)

    def totals(self) -> dict[str, tuple[int, float]]:
        """Per tier the bytes flushed since the agent began, and the seconds that took."""
        with self._lock:
            return dict(self._totals)

    def flushes(self) -> dict[str, list[Flush]]:
        """Per tier, oldest first."""
        with self._lock:
            return {tier: list(flushes) for tier, flushes in self._flushes.items()}


class Arrivals:
    """When each image was first seen in its slot. Threads: the agent's event loop only."""

    def __init__(self) -> None:
        self._since: dict[int, tuple[int, float]] = {}

    def look(self, slots: Iterable[Slot], now_s: float) -> None:
        """One look at every slot's page."""
        for slot in slots:
            page = slot.page
            if page.state in (SlotState.STAGED, SlotState.HELD):
                if self._since.get(slot.number, (-1, 0.0))[0] != page.generation:
                    self._since[slot.number] = page.generation, now_s
            else:
                self._since.pop(slot.number, None)

    def age_s(self, slot: int, now_s: float) -> float:
        """How long what is in the slot has been there; 0 where nothing is."""
        return max(0.0, now_s - self._since[slot][1]) if slot in self._since else 0.0
