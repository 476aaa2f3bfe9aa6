"""The agent's tiers, each opened once, with threads of its own."""

from __future__ import annotations

import hashlib
import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from holdfast.agent.late import LateTier
from holdfast.agent.patience import Patience, PatientTier
from holdfast.config import Settings
from holdfast.errors import HoldfastError, TierUnavailableError
from holdfast.model.place import TierRule
from holdfast.store import catalog as catalogs
from holdfast.tiers import PosixTier, open_tier
from holdfast.tiers.boot import boot_id
from holdfast.tiers.contract import ABANDONED_S, Tier
from holdfast.tiers.wrappers import Retry, RetryPolicy, Throttle

log = logging.getLogger("holdfast.agent")

T = TypeVar("T")

_LEAST_LOOK_S = 5.0
_LOOKS_PER_LOAD = 6
_LOOKS_PER_START = 6


class OpenTiers:
    """Invariants: a tier is opened once; no tier takes the threads of another, so that one that hangs holds up itself.

    Attributes:
        settings: of the launch that is attached.
        opening: a thread for `open_for`: a launch waits for none that looks at a tier that hangs.

    Threads: any; what looks at a tier blocks.
    """

    def __init__(self, settings: Settings, arena: Path) -> None:
        self.settings = settings
        self.opening = ThreadPoolExecutor(1, thread_name_prefix="holdfast-open")
        self._arena = _arena_id(arena)
        self._name = f"{self._arena}.{uuid.uuid4().hex[:12]}"
        self._tiers: dict[str, Tier] = {}
        self._urls = {r.name: r.url for r in settings.beyond_memory}
        self._left: list[Tier] = []
        self._disks: dict[str, PosixTier] = {}
        self._known: dict[str, catalogs.KnownManifests] = {}
        self._limited: dict[str, Throttle] = {}
        self._limits = _limits_of(settings)
        """Also of tiers that are not open yet."""
        self._limiting = threading.Lock()
        self._parts: dict[str, ThreadPoolExecutor] = {}
        self._uploads: dict[str, ThreadPoolExecutor] = {}
        self._fetches: dict[str, ThreadPoolExecutor] = {}
        self._acts: dict[str, ThreadPoolExecutor] = {}
        self._chores: dict[str, ThreadPoolExecutor] = {}
        self._looks: dict[tuple[str, str], Patience] = {}
        """By name and URL: a tier that hangs is looked at no more, also when a launch names it again."""
        for rule in settings.beyond_memory:
            self._install(rule, self._open_or_later(rule))

    def __getitem__(self, name: str) -> Tier:
        return self._tiers[name]

    # -- opening ------------------------------------------------------------------------------------------------------
    def open_for(self, settings: Settings) -> dict[TierRule, Throttle]:
        """What a launch needs that is not open: tiers that are new, stand elsewhere now, or lost their directory and
        begin anew. Each within the time a look may take.

        Raises: ConfigError, TierError; nothing is left open then, nor what opens too late.
        """
        opened: dict[TierRule, Throttle] = {}
        try:
            for rule in settings.beyond_memory:
                if self._urls.get(rule.name) != rule.url or self._was_replaced(rule):
                    opened[rule] = self._in_time(rule, partial(self._open, rule), late=Throttle.close)
        except HoldfastError:
            for tier in opened.values():
                tier.close()
            raise
        return opened

    def reconfigure(self, settings: Settings, opened: dict[TierRule, Throttle]) -> None:
        """Other tiers: those `opened` for these settings, and those that stay open, with the limits and the patience
        they have now. What is gone stays open until the agent ends, for flushes under way. Asks no disk.
        """
        self._limit(_limits_of(settings))
        for rule, tier in opened.items():
            self._urls[rule.name] = rule.url
            self._install(rule, Retry(self._named(rule, tier), _patience(settings)))
        for kept in self._tiers.values():
            if isinstance(kept, Retry):
                kept.policy = _patience(settings)
        self.settings = settings

    def _was_replaced(self, rule: TierRule) -> bool:
        """Whether another directory stands where this tier was opened: a new launch writes there, the old may not."""
        try:
            return rule.name in self._disks and not self._in_time(rule, self._disks[rule.name].stands)
        except (OSError, TierUnavailableError):  # sick, not replaced: that is for the calls that use it
            return False

    def _in_time(self, rule: TierRule, call: Callable[[], T], late: Callable[[T], None] | None = None) -> T:
        """`call()`, for as long as a look may take when an agent starts. Raises: TierUnavailableError when it hangs."""
        return self._look_of(rule.name, rule.url).look(call, self.start_look_s, late=late)

    def _look_of(self, name: str, url: str) -> Patience:
        known = self._looks.get((name, url))
        return known if known is not None else self._looks.setdefault((name, url), Patience(name))

    def _open(self, rule: TierRule) -> Throttle:
        """Not inside of retries, but to be: what is sent again takes bandwidth again."""
        tier = open_tier(rule.url, name=rule.name, scope=rule.scope, owner=self._name)
        return Throttle(tier, write_bytes_per_s=rule.max_bytes_per_s)

    def _named(self, rule: TierRule, tier: Throttle) -> Throttle:
        """The same, which is the tier of that name from now on, unless that stands elsewhere meanwhile."""
        with self._limiting:
            if self._urls[rule.name] == rule.url:
                self._limited[rule.name] = tier
                tier.limit_writes(self._limits.get(rule.name))
                if isinstance(tier.inner, PosixTier):
                    self._disks[rule.name] = tier.inner
        return tier

    def _open_or_later(self, rule: TierRule) -> Tier:
        """An agent that follows one that died keeps and loads memory, whatever became of a tier meanwhile."""
        # Opening is tried again like any other call, else a flush that begins at once fails for good.
        late = LateTier(rule.name, rule.scope, lambda: self._named(rule, self._open(rule)), _patience(self.settings))
        try:
            return Retry(self._in_time(rule, late.open), _patience(self.settings))
        except HoldfastError as e:
            log.error("tier %s is not used until it can be opened: %s", rule.name, e.message)
            return late

    def _install(self, rule: TierRule, tier: Tier) -> None:
        if rule.name in self._tiers:
            self._left.append(self._tiers[rule.name])
        self._tiers[rule.name] = tier
        self._known[rule.name] = catalogs.KnownManifests()
        if rule.name not in self._parts:
            threads = tier.capabilities.concurrency
            self._parts[rule.name] = ThreadPoolExecutor(threads, thread_name_prefix=f"holdfast-{rule.name}")
            self._uploads[rule.name] = ThreadPoolExecutor(2, thread_name_prefix=f"holdfast-up-{rule.name}")
            self._fetches[rule.name] = ThreadPoolExecutor(2, thread_name_prefix=f"holdfast-fetch-{rule.name}")
            self._acts[rule.name] = ThreadPoolExecutor(2, thread_name_prefix=f"holdfast-act-{rule.name}")
            self._chores[rule.name] = ThreadPoolExecutor(1, thread_name_prefix=f"holdfast-chore-{rule.name}")

    # -- which there are ----------------------------------------------------------------------------------------------
    @property
    def authority(self) -> Tier:
        """The tier attempts are claimed on."""
        return self._tiers[self.settings.home_tier.name]

    @property
    def besides_home(self) -> list[Tier]:
        """All but the one attempts are claimed on."""
        return [t for _, t in self.shelved() if t is not self.authority]

    def shelved(self) -> Iterator[tuple[str, Tier]]:
        """Those that the settings name now; memory is none of them."""
        return ((r.name, self._tiers[r.name]) for r in self.settings.beyond_memory)

    def others(self, tier: str) -> list[Tier]:
        """Where another copy of what is on this tier may be; each may be looked at for so long."""
        return [self.patient(t) for name, t in self.shelved() if name != tier]

    # -- bandwidth, room, threads -------------------------------------------------------------------------------------
    def limit_of(self, tier: str) -> float | None:
        """How many bytes per second are flushed there at most; None: no limit."""
        return self._limited[tier].write_bytes_per_s if tier in self._limited else None

    def lift_limits(self) -> None:
        """The end is near: what has to be durable by then takes all bandwidth there is."""
        self._limit(dict.fromkeys(self._limits))

    def _limit(self, limits: dict[str, float | None]) -> None:
        """These tiers get other limits, now or when they are opened."""
        with self._limiting:
            self._limits.update(limits)
            for name in limits.keys() & self._limited.keys():
                self._limited[name].limit_writes(limits[name])

    def recyclable(self, tier: str) -> tuple[int, int]:
        """How many files of deleted images wait there for new ones, and their bytes. Asks no disk."""
        return self._disks[tier].recyclable if tier in self._disks else (0, 0)

    def uploads(self, tier: str) -> ThreadPoolExecutor:
        """Where flushes to a tier run."""
        return self._uploads[tier]

    def fetches(self, tier: str) -> ThreadPoolExecutor:
        """Where images are read from a tier."""
        return self._fetches[tier]

    def acts(self, tier: str) -> ThreadPoolExecutor:
        """Where commits on a tier and repairs of its copies run."""
        return self._acts[tier]

    def chores(self, tier: str) -> ThreadPoolExecutor:
        """Where a tier is tidied: rolling forward, deletions, sweeps. One after the other, so that none deletes what
        another is about to commit."""
        return self._chores[tier]

    def parts(self, tier: str) -> ThreadPoolExecutor:
        """Where parts of an image are read and written."""
        return self._parts[tier]

    # -- looking ------------------------------------------------------------------------------------------------------
    def catalog(self, tier: str) -> catalogs.Catalog:
        """What is on a tier; manifests that did not change are not read again."""
        return catalogs.read_catalog(self[tier], known=self.known(tier))

    def known(self, tier: str) -> catalogs.KnownManifests:
        """Manifests of a tier that need not be read again."""
        return self._known[tier]

    def look_at(self, tier: str, limit_s: float | None = None) -> catalogs.Catalog:
        """`catalog`, within a part of what a load may take, or within `limit_s`.

        Raises: TierUnavailableError when it hangs, and the thread is left to it; what listing raises.
        """
        look = self._look_of(tier, self._urls[tier]).look
        return look(partial(self.catalog, tier), max(_LEAST_LOOK_S, limit_s or self._look_s))

    @property
    def _look_s(self) -> float:
        return self.settings.load_timeout_s / _LOOKS_PER_LOAD

    @property
    def start_look_s(self) -> float:
        """How long a tier may take to be opened or listed when an agent starts, or has claimed an attempt."""
        return max(_LEAST_LOOK_S, self.settings.agent_start_timeout_s / _LOOKS_PER_START)

    def patient(self, tier: Tier) -> Tier:
        """The same tier, which is looked at for a part of what a load may take."""
        patience = self._look_of(tier.name, self._urls[tier.name])
        return PatientTier(tier, patience, max(_LEAST_LOOK_S, self._look_s))

    def sweep_uploads(self, tier: str) -> None:
        """Remove unfinished uploads to a tier whose agent is surely dead.

        That is every other agent of this arena, whose lock we hold. Of other arenas and nodes only time tells.
        """
        self[tier].sweep(owner_prefix=f"{self._arena}.")
        self[tier].sweep(untouched_s=ABANDONED_S)

    def close(self) -> None:
        """Wait for what the pools still do, then let go of the tiers; main.py sees to it that this ends."""
        # Parts last: whatever runs in the others may need them to come to its end.
        pools = self._uploads, self._fetches, self._acts, self._chores, self._parts
        for pool in (self.opening, *(p for of_tiers in pools for p in of_tiers.values())):
            pool.shutdown(wait=True, cancel_futures=True)
        for patience in list(self._looks.values()):
            patience.close()
        for tier in (*self._tiers.values(), *self._left):
            tier.close()


def _limits_of(settings: Settings) -> dict[str, float | None]:
    return {r.name: r.max_bytes_per_s for r in settings.beyond_memory}


def _patience(settings: Settings) -> RetryPolicy:
    return RetryPolicy(deadline_s=settings.retry_s)


def _arena_id(arena: Path) -> str:
    """Tells arenas apart, on one node and on several. Two containers may have a path in common, not its file system."""
    return hashlib.sha256(f"{boot_id()}:{arena.stat().st_dev}:{arena}".encode()).hexdigest()[:12]
