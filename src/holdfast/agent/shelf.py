"""All that the agent does on its tiers, and the threads for it. It blocks: the event loop offloads it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from holdfast.agent.claiming import Claiming
from holdfast.agent.contents import Contents
from holdfast.agent.keeping import Keeping
from holdfast.agent.open_tiers import OpenTiers
from holdfast.agent.remaking import Remaking
from holdfast.config import Settings

_STORE_THREADS = 4


class Shelf:
    """The agent's tiers by what is done on them, and the threads for that.

    Attributes:
        checks, pool, faulting: threads for proving coverage, for looking at tiers, for faulting slots; tiers have their
            own for the rest.
    """

    def __init__(self, settings: Settings, arena: Path) -> None:
        self.tiers = OpenTiers(settings, arena)
        self.claiming = Claiming(self.tiers)
        self.contents = Contents(self.tiers, self.claiming)
        self.keeping = Keeping(self.tiers, self.claiming)
        self.remaking = Remaking(self.tiers)
        self.checks = ThreadPoolExecutor(1, thread_name_prefix="holdfast-check")
        self.pool = ThreadPoolExecutor(_STORE_THREADS, thread_name_prefix="holdfast-store")
        self.faulting = ThreadPoolExecutor(1, thread_name_prefix="holdfast-fault")

    def close(self) -> None:
        """Wait for what is still done, then let go of the tiers; main.py sees to it that this ends."""
        for pool in (self.pool, self.faulting, self.checks):
            pool.shutdown(wait=True, cancel_futures=True)
        self.tiers.close()
