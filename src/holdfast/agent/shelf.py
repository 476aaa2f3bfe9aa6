"""The agent's tiers and the thread pools that work on them. Everything here blocks; the event loop offloads it."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from holdfast.agent.claims import Claims, Standing
from holdfast.agent.history import FlushLog
from holdfast.agent.late import LateTier
from holdfast.agent.patience import Patience, PatientTier
from holdfast.config import Settings
from holdfast.errors import AgentError, HoldfastError, NotFoundError, RunBusyError
from holdfast.format.image import read_notes, read_plain
from holdfast.format.manifest import build
from holdfast.lifecycle.actions import KnownImage
from holdfast.model.identity import CheckpointId, ImageId, Lineage
from holdfast.model.image import ImageHeader, ImageRecord
from holdfast.model.manifest import Manifest
from holdfast.model.notes import Notes
from holdfast.model.place import TierRule
from holdfast.store import attempts, commit, fetch, flush, prune, repair, rollforward, sweep
from holdfast.store import catalog as catalogs
from holdfast.tiers import PosixTier, open_tier, same_place
from holdfast.tiers.contract import ABANDONED_S, Tier
from holdfast.tiers.wrappers import Retry, RetryPolicy, Throttle
from holdfast.wire.client import AgentClient

log = logging.getLogger("holdfast.agent")

_STORE_THREADS = 4
_FETCHES = 2
_ASK_S = 5.0
_LEAST_LOOK_S = 5.0
_LOOKS_PER_LOAD = 6
_LOOKS_PER_START = 6
T = TypeVar("T")


@dataclass(slots=True)
class View:
    """What all tiers together hold, at one moment."""

    standing: Standing
    committed: dict[CheckpointId, list[str]] = field(default_factory=dict)
    sizes: dict[CheckpointId, int] = field(default_factory=dict)
    tombstoned: set[CheckpointId] = field(default_factory=set)
    abandoned: set[CheckpointId] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    damaged: dict[CheckpointId, list[str]] = field(default_factory=dict)
    """Per checkpoint what is wrong where it cannot be loaded from; `problems` has these, too."""
    wounds: dict[CheckpointId, list[catalogs.Wound]] = field(default_factory=dict)
    empty: bool = True
    unknown: HoldfastError | None = None
    """Why it cannot be said which attempt counts: nothing can be loaded then."""

    @property
    def lineage(self) -> Lineage:
        return self.standing.lineage

    @property
    def attempts(self) -> int:
        """The highest attempt; 0: none."""
        return self.standing.highest


class Shelf:
    """Invariants: a tier is opened once; no tier takes the threads of another, so that one that hangs holds up itself.

    Threads: any; each method blocks.
    """

    def __init__(self, settings: Settings, arena: Path) -> None:
        self._settings = settings
        self._arena = _arena_id(arena)
        self._name = f"{self._arena}.{uuid.uuid4().hex[:12]}"
        self.owner = 0
        self.claims = Claims(self._claims_on)
        self.tiers: dict[str, Tier] = {}
        self._urls: dict[str, str] = {}
        self._left: list[Tier] = []
        self._disks: dict[str, PosixTier] = {}
        self._known: dict[str, catalogs.KnownManifests] = {}
        self.repaired: Counter[str] = Counter()
        """Copies re-made, by tier, since the agent began."""
        self._limited: dict[str, Throttle] = {}
        self._parts: dict[str, ThreadPoolExecutor] = {}
        self._uploads: dict[str, ThreadPoolExecutor] = {}
        self._acts: dict[str, ThreadPoolExecutor] = {}
        self._looks: dict[str, Patience] = {}
        self.checks = ThreadPoolExecutor(1, thread_name_prefix="holdfast-check")
        self.pool = ThreadPoolExecutor(_STORE_THREADS, thread_name_prefix="holdfast-store")
        self.fetches = ThreadPoolExecutor(_FETCHES, thread_name_prefix="holdfast-fetch")
        self.faulting = ThreadPoolExecutor(1, thread_name_prefix="holdfast-fault")
        self.flushes = FlushLog()
        self._manifests: dict[CheckpointId, Manifest] = {}
        self._lock = threading.Lock()
        for rule in settings.tiers:
            if not rule.is_memory:
                self._install(rule, self._open_or_later(rule))

    def reconfigure(self, settings: Settings) -> None:
        """Other tiers: open what is new, or stands elsewhere now. What is gone stays open until the agent ends, for
        flushes under way. Nothing changes when one cannot be opened.

        Raises: ConfigError, TierError.
        """
        opened: dict[TierRule, Tier] = {}
        try:
            for rule in settings.tiers:
                if not rule.is_memory and self._urls.get(rule.name) != rule.url:
                    opened[rule] = self._open(rule)
        except HoldfastError:
            for tier in opened.values():
                tier.close()
            raise
        for rule, tier in opened.items():
            self._install(rule, tier)
        self._limit(settings.tiers)
        self._settings = settings

    def _open(self, rule: TierRule) -> Tier:
        return Retry(self._open_once(rule), self._patience)

    @property
    def _patience(self) -> RetryPolicy:
        return RetryPolicy(deadline_s=self._settings.retry_s)

    def _open_once(self, rule: TierRule) -> Tier:
        tier = open_tier(rule.url, name=rule.name, scope=rule.scope, owner=self._name)
        if isinstance(tier, PosixTier):
            self._disks[rule.name] = tier
        # Inside of the retries: what is sent again takes bandwidth again.
        limited = self._limited[rule.name] = Throttle(tier, write_bytes_per_s=rule.max_bytes_per_s)
        return limited

    def _limit(self, rules: Collection[TierRule]) -> None:
        """Tiers that stay open get the limits they have now."""
        for rule in rules:
            if rule.name in self._limited:
                self._limited[rule.name].limit_writes(rule.max_bytes_per_s)

    def limit_of(self, tier: str) -> float | None:
        """How many bytes per second are flushed there at most; None: no limit."""
        return self._limited[tier].write_bytes_per_s if tier in self._limited else None

    def lift_limits(self) -> None:
        """The end is near: what has to be durable by then takes all bandwidth there is."""
        for tier in list(self._limited.values()):
            tier.limit_writes(None)

    def _open_or_later(self, rule: TierRule) -> Tier:
        """An agent that follows one that died keeps and loads memory, whatever became of a tier meanwhile."""
        try:
            return self._open(rule)
        except HoldfastError as e:
            log.error("tier %s is not used until it can be opened: %s", rule.name, e.message)
            # Opening is tried again like any other call, else a flush that begins at once fails for good.
            return LateTier(rule.name, rule.scope, lambda: self._open_once(rule), self._patience)

    def _install(self, rule: TierRule, tier: Tier) -> None:
        if rule.name in self.tiers:
            self._left.append(self.tiers[rule.name])
        self.tiers[rule.name], self._urls[rule.name] = tier, rule.url
        self._known[rule.name] = catalogs.KnownManifests()
        if rule.name not in self._parts:
            threads = tier.capabilities.concurrency
            self._parts[rule.name] = ThreadPoolExecutor(threads, thread_name_prefix=f"holdfast-{rule.name}")
            self._uploads[rule.name] = ThreadPoolExecutor(2, thread_name_prefix=f"holdfast-up-{rule.name}")
            self._acts[rule.name] = ThreadPoolExecutor(2, thread_name_prefix=f"holdfast-act-{rule.name}")
            self._looks[rule.name] = Patience(rule.name)

    @property
    def authority(self) -> Tier:
        """The tier attempts are claimed on."""
        return self.tiers[self._settings.home_tier.name]

    def recyclable(self, tier: str) -> tuple[int, int]:
        """How many files of deleted images wait there for new ones, and their bytes. Asks no disk."""
        return self._disks[tier].recyclable if tier in self._disks else (0, 0)

    def uploads(self, tier: str) -> ThreadPoolExecutor:
        return self._uploads[tier]

    def acts(self, tier: str) -> ThreadPoolExecutor:
        """Where commits and deletions on a tier run."""
        return self._acts[tier]

    def _look(self, tier: str, call: Callable[[], T], limit_s: float | None = None) -> T:
        """`call()`, which looks at a tier, within a part of what a load may take.

        Raises: TierUnavailableError when it hangs; the thread is left to it.
        """
        limit_s = max(_LEAST_LOOK_S, limit_s or self._settings.load_timeout_s / _LOOKS_PER_LOAD)
        return self._looks[tier].look(call, limit_s)

    def _patient(self, tier: Tier) -> Tier:
        """The same tier, which is looked at for a part of what a load may take."""
        limit_s = max(_LEAST_LOOK_S, self._settings.load_timeout_s / _LOOKS_PER_LOAD)
        return PatientTier(tier, self._looks[tier.name], limit_s)

    def _shelved(self) -> Iterator[tuple[str, Tier]]:
        return ((r.name, self.tiers[r.name]) for r in self._settings.tiers if not r.is_memory)

    # -- attempts -----------------------------------------------------------------------------------------------------
    def lineage(self) -> tuple[Lineage, int]:
        """The lineage of the highest attempt, and its number (0: none). Raises: see `Claims.read`."""
        found = self.claims.read(self.authority, self._besides_home)
        return found.lineage, found.highest

    def _claims_on(self, home: Tier, others: Sequence[Tier]) -> attempts.Attempts:
        """Each within the time a look may take. Raises: see `read_attempts`."""
        return attempts.read_attempts([self._patient(home)], spare=[self._patient(t) for t in others])

    @property
    def _besides_home(self) -> list[Tier]:
        return [t for _, t in self._shelved() if t is not self.authority]

    def claim(self, parent: CheckpointId | None, coordinator: str, seen: int) -> tuple[int, Lineage]:
        """Claim the next attempt. Raises: see store.attempts.claim; SupersededError: see `Claims.check`."""
        others = self._besides_home
        self.claims.check(self.authority)
        for name, _ in self._shelved():
            with contextlib.suppress(HoldfastError):
                seen = max(seen, self._look(name, partial(self._catalog, name)).highest_attempt)
        claimed = attempts.claim(
            self.authority,
            [self._patient(t) for t in others],
            run=self._settings.run,
            parent=parent,
            coordinator=coordinator,
            seen=seen,
        )
        self.owner = claimed.attempt
        self.claims.claimed(claimed.attempt)
        return claimed.attempt, self.lineage()[0]

    def refuse_other_owner(self, own_coordinator: str) -> None:
        """Another arena of this machine may run the same run: ask its coordinator whether trainers are attached.

        Raises: RunBusyError.
        """
        found = attempts.read_attempts([self.authority])
        newest = max(found.records, key=lambda a: a.attempt, default=None)
        if newest is None or not newest.coordinator or newest.coordinator == own_coordinator:
            return
        boot, _, path = newest.coordinator.partition(":")
        if boot != own_coordinator.partition(":")[0] or not os.path.exists(path):
            return
        attached = _attached_at(Path(path), self._settings.home)
        if attached:
            raise RunBusyError(
                f"attempt {newest.attempt} of this run is coordinated at {path}, where {attached}",
                hint="end that job first, or use another run name",
            )

    # -- what is there ------------------------------------------------------------------------------------------------
    def catalog(self, tier: str) -> tuple[frozenset[CheckpointId], frozenset[CheckpointId], dict[CheckpointId, Notes]]:
        """(committed, tombstoned, notes of the committed) on a tier.

        What cannot be loaded does not count: nothing is let go for its sake.
        """
        limit_s = self._settings.agent_start_timeout_s / _LOOKS_PER_START
        found = self._look(tier, partial(self._catalog, tier), limit_s)
        return (
            frozenset(e.id for e in found if e.loadable),
            frozenset(e.id for e in found if e.tombstoned),
            found.notes,
        )

    def _catalog(self, tier: str) -> catalogs.Catalog:
        """What is on a tier; manifests that did not change are not read again."""
        return catalogs.read_catalog(self.tiers[tier], known=self._known[tier])

    def view(self) -> View:
        """All tiers together: for loads and `ls`. A tier that cannot be read is a problem, not an error."""
        view = self._stand()
        for name, _ in self._shelved():
            try:
                self._see(view, name, self._look(name, partial(self._catalog, name)))
            except HoldfastError as e:
                view.problems.append(f"{name}: {e.message}")
                view.empty = False
        view.abandoned = {c for c in view.committed if c not in view.standing.lineage}
        return view

    def _stand(self) -> View:
        """A view of nothing yet but whose the run is."""
        try:
            standing = self.claims.for_load(self.authority, self._besides_home)
        except HoldfastError as e:
            return View(Standing(Lineage({}), 0), unknown=e, empty=False)
        doubts = [standing.doubt] if standing.doubt else []
        return View(standing, problems=doubts, empty=not standing.highest)

    def _see(self, view: View, name: str, found: catalogs.Catalog) -> None:
        for entry in found:
            view.empty = False
            if entry.tombstoned:
                view.tombstoned.add(entry.id)
            elif entry.loadable:
                view.committed.setdefault(entry.id, []).append(name)
                view.sizes[entry.id] = entry.size_bytes
            elif entry.committed:
                why = entry.problem.message if entry.problem else "images are missing or bad"
                view.problems.append(f"{entry.id} on {name}: {why}")
                view.damaged.setdefault(entry.id, []).append(f"{name}: {why}")
                view.wounds[entry.id] = [*view.wounds.get(entry.id, []), *entry.wounds(name)]

    def manifest(self, tier: str, checkpoint: CheckpointId) -> Manifest:
        return catalogs.read_manifest(self.tiers[tier], checkpoint)

    def fetch(self, tier: str, record: ImageRecord, room: memoryview) -> ImageHeader:
        """An image into `room`, proven. Raises: CorruptError, NotFoundError, TierError."""
        return fetch.fetch_image(self.tiers[tier], record, room, self._parts[tier])

    # -- flush, commit, delete ----------------------------------------------------------------------------------------
    def upload(self, tier: str, source: flush.Source) -> None:
        """Flush an image. Raises: see store.flush."""
        with self.flushes.noting(tier, source.image, len(source.buffer)):
            repair.flush_or_repair(self.tiers[tier], source, self._parts[tier])

    def check_whole(self, checkpoint: CheckpointId, images: tuple[KnownImage, ...], first: memoryview | None) -> None:
        """Build the manifest: proves that the images cover every tensor. It is kept for the commits.

        Raises: CorruptError.
        """
        plain, notes = None, b""
        if first is not None:
            header = next(i.header for i in images if (i.record.id.rank, i.record.id.image) == (0, 0))
            plain, notes = read_plain(first, header.layout), read_notes(first, header.layout)
        manifest = build([i.header for i in images], [i.record for i in images], plain, notes=notes)
        with self._lock:
            self._manifests[checkpoint] = manifest
            # More steps than there are slots cannot be on their way; of one that was fetched, too, there is room.
            while len(self._manifests) > 2 * self._settings.slots_per_rank:
                del self._manifests[next(iter(self._manifests))]

    def commit(self, tier: str, checkpoint: CheckpointId, images: tuple[KnownImage, ...]) -> Notes | None:
        """Publish the manifest; what it says of the checkpoint.

        Raises: SupersededError, NotFoundError (deleted), CorruptError, TierError.
        """
        manifest = self._manifests.get(checkpoint)
        if manifest is None or set(manifest.images) != {i.record for i in images}:
            return self._roll(tier, checkpoint)
        commit.publish_manifest(self.tiers[tier], self.authority, manifest, owner=self.owner)
        return manifest.notes

    def _roll(self, tier: str, checkpoint: CheckpointId) -> Notes | None:
        """Found by listing, or no longer in memory: everything is read and proven before the manifest is written."""
        entry = self._catalog(tier).get(checkpoint)
        if entry is None:
            raise NotFoundError(f"{checkpoint} is not there any more", tier=tier, step=checkpoint.step)
        if entry.problem is not None:
            raise entry.problem
        if entry.loadable and entry.manifest is not None:
            return entry.manifest.notes
        rolled = rollforward.roll_forward(self.tiers[tier], self.authority, entry, owner=self.owner)
        if rolled.manifest is None:
            raise rolled.problem or NotFoundError(f"{checkpoint} is not there any more", tier=tier)
        return rolled.manifest.notes

    def roll_forward(self) -> list[tuple[str, CheckpointId]]:
        """Commit whole but uncommitted steps of the lineage on every tier; returns what was committed."""
        lineage, _ = self.lineage()
        done = []
        for name, tier in self._shelved():
            for entry in rollforward.candidates(self._catalog(name), lineage):
                rolled = rollforward.roll_forward(tier, self.authority, entry, owner=self.owner)
                if rolled.manifest is not None:
                    done.append((name, entry.id))
        return done

    def prune(self, tier: str, checkpoints: frozenset[CheckpointId], spare: frozenset[ImageId]) -> None:
        """Delete checkpoints, in the crash-safe order of store.prune; deletions that have begun are finished."""
        found = self._catalog(tier)
        there = [c for c in sorted(checkpoints) if (e := found.get(c)) is not None and not e.tombstoned]
        plan = prune.plan_delete(found, self.lineage()[0], there)
        prune.execute_prune(
            self.tiers[tier],
            plan,
            authority=self.authority,
            owner=self.owner,
            spare=spare,
            known=self._known[tier],
        )

    def record(self, checkpoint: CheckpointId, image: ImageId) -> ImageRecord | None:
        """What an image has to be, by the first manifest of the checkpoint that can be read."""
        for _, tier in self._shelved():
            with contextlib.suppress(HoldfastError):
                return next((r for r in catalogs.read_manifest(tier, checkpoint).images if r.id == image), None)
        return None

    def repair_image(self, tier: str, record: ImageRecord, checkpoint: CheckpointId, reason: str) -> str:
        """Re-make a copy from another tier's; its name. Raises: see store.repair."""
        return repair.repair_image(self.tiers[tier], record, self._others(tier), checkpoint=checkpoint, reason=reason)

    def repair_from_memory(
        self, tier: str, record: ImageRecord, image: memoryview, checkpoint: CheckpointId, reason: str
    ) -> None:
        """Re-make a copy from a proven image in memory. Raises: see store.repair."""
        repair.repair_image_from_memory(
            self.tiers[tier], record, image, self._parts[tier], checkpoint=checkpoint, reason=reason
        )

    def repair_manifest(self, tier: str, checkpoint: CheckpointId) -> str:
        """Re-make a manifest from another tier's, or from the images; which. Raises: see store.repair."""
        entry = self._catalog(tier).get(checkpoint)
        if entry is None:
            raise NotFoundError(f"{checkpoint} is not there any more", tier=tier, step=checkpoint.step)
        return repair.repair_manifest(self.tiers[tier], entry, self._others(tier))

    def _others(self, tier: str) -> list[Tier]:
        return [t for name, t in self._shelved() if name != tier]

    def sweep_steps(self, tier: str, checkpoints: frozenset[CheckpointId], spare: frozenset[ImageId]) -> None:
        """Remove images of steps that will never be committed on the tier."""
        found = self._catalog(tier)
        named = found.named().union(spare)
        images: list[ImageId] = []
        for checkpoint in sorted(checkpoints):
            entry = found.get(checkpoint)
            if entry is not None and not entry.committed and not entry.tombstoned:
                images += [i for i in entry.images if i not in named]
        plan = sweep.SweepPlan(tuple(images), 0)
        sweep.execute_sweep(self.tiers[tier], plan, authority=self.authority, owner=self.owner)

    def sweep_uploads(self) -> None:
        """Remove unfinished uploads whose agent is surely dead.

        That is every other agent of this arena, whose lock we hold. Of other arenas and nodes only time tells.
        """
        for _, tier in self._shelved():
            tier.sweep(owner_prefix=f"{self._arena}.")
            tier.sweep(untouched_s=ABANDONED_S)

    def tidy(self, in_flight: Collection[CheckpointId]) -> None:
        """Remove images of old steps that no manifest and no flight of any node names."""
        for name, tier in self._shelved():
            plan = sweep.plan_sweep(self._catalog(name), in_flight=in_flight)
            sweep.execute_sweep(tier, plan, authority=self.authority, owner=self.owner)

    def close(self) -> None:
        """Wait for what the pools still do, then let go of the tiers; main.py sees to it that this ends."""
        per_tier = (*self._uploads.values(), *self._parts.values(), *self._acts.values())
        for pool in (self.pool, self.fetches, self.faulting, self.checks, *per_tier):
            pool.shutdown(wait=True, cancel_futures=True)
        for patience in self._looks.values():
            patience.close()
        for tier in (*self.tiers.values(), *self._left):
            tier.close()


def _arena_id(arena: Path) -> str:
    """Tells arenas apart, on one node and on several. Two containers may have a path in common, not its file system."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return hashlib.sha256(f"{boot}:{arena.stat().st_dev}:{arena}".encode()).hexdigest()[:12]


def _attached_at(socket_path: Path, home: str) -> str:
    """Who trains with the agent that answers there, in words; empty when nobody does, or no agent is there.

    One of another home leads a run that this one was copied from.
    """
    try:
        status: dict[str, Any] = AgentClient(socket_path).get("/status", dict, timeout_s=_ASK_S)
    except AgentError:
        return ""
    except HoldfastError as e:
        return e.message  # it lives and does not say: perhaps somebody trains
    if not same_place(status["home"], home):
        return ""
    pids = [str(t["pid"]) for t in status.get("trainers", ()) if t["alive"]]
    return f"process {', '.join(pids)} trains" if pids else ""
