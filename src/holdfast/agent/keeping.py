"""Checkpoints on the agent's tiers: flush, commit, delete."""

from __future__ import annotations

import threading
from collections.abc import Collection

from holdfast.agent.claiming import Claiming
from holdfast.agent.history import FlushLog
from holdfast.agent.open_tiers import OpenTiers
from holdfast.errors import CorruptError, HoldfastError, NotFoundError, UsageError
from holdfast.format.image import read_notes, read_plain
from holdfast.format.manifest import build
from holdfast.lifecycle.actions import KnownImage
from holdfast.model.identity import CheckpointId, ImageId
from holdfast.model.manifest import Manifest
from holdfast.model.notes import Notes
from holdfast.store import commit, flush, prune, repair, rollforward, sweep
from holdfast.store.catalog import Catalog, CatalogEntry

Refused = dict[CheckpointId, HoldfastError]
"""What could not be deleted though nothing failed, and why."""


class Keeping:
    """Invariant: commits and deletes in the name of the attempt that this agent owns.

    Threads: any; each method blocks.
    """

    def __init__(self, tiers: OpenTiers, claiming: Claiming) -> None:
        self._tiers = tiers
        self._claiming = claiming
        self.flushes = FlushLog()
        self._manifests: dict[CheckpointId, Manifest] = {}
        self._lock = threading.Lock()

    def upload(self, tier: str, source: flush.Source) -> None:
        """Flush an image. Raises: see store.flush."""
        with self.flushes.noting(tier, source.image, len(source.buffer)):
            repair.flush_or_repair(self._tiers[tier], source, self._tiers.parts(tier))

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
            while len(self._manifests) > 2 * self._tiers.settings.slots_per_rank:
                del self._manifests[next(iter(self._manifests))]

    def commit(self, tier: str, checkpoint: CheckpointId, images: tuple[KnownImage, ...]) -> Notes | None:
        """Publish the manifest; what it says of the checkpoint.

        Raises: SupersededError, NotFoundError (deleted), CorruptError, TierError.
        """
        manifest = self._manifests.get(checkpoint)
        if manifest is None or set(manifest.images) != {i.record for i in images}:
            return self._roll(tier, checkpoint)
        self._claiming.in_our_name(
            lambda owner: commit.publish_manifest(self._tiers[tier], self._tiers.authority, manifest, owner=owner)
        )
        return manifest.notes

    def _roll(self, tier: str, checkpoint: CheckpointId) -> Notes | None:
        """Found by listing, or no longer in memory: everything is read and proven before the manifest is written."""
        entry = self._tiers.catalog(tier).get(checkpoint)
        if entry is None:
            raise NotFoundError(f"{checkpoint} is not there any more", tier=tier, step=checkpoint.step)
        if entry.problem is not None:
            raise entry.problem
        if entry.loadable and entry.manifest is not None:
            return entry.manifest.notes
        rolled = self._rolled(tier, entry)
        if rolled.manifest is None:
            raise rolled.problem or NotFoundError(f"{checkpoint} is not there any more", tier=tier)
        return rolled.manifest.notes

    def _rolled(self, tier: str, entry: CatalogEntry) -> rollforward.RolledForward:
        return self._claiming.in_our_name(
            lambda owner: rollforward.roll_forward(self._tiers[tier], self._tiers.authority, entry, owner=owner)
        )

    def roll_forward(self, tier: str) -> list[CheckpointId]:
        """Commit whole but uncommitted steps of the lineage on a tier; returns what was committed."""
        lineage, _ = self._claiming.lineage()
        done = []
        for entry in rollforward.candidates(self._tiers.catalog(tier), lineage):
            rolled = self._rolled(tier, entry)
            if rolled.manifest is not None:
                done.append(entry.id)
        return done

    def prune(self, tier: str, checkpoints: frozenset[CheckpointId], spare: frozenset[ImageId]) -> Refused:
        """Delete checkpoints, in the crash-safe order of store.prune; deletions that have begun are finished.

        Returns those that have to stay for now, and why: the last that loads, and what a manifest that cannot be read
        may name. The others are gone.
        """
        # The plan, too, is made anew in the name of another attempt: that one may stand on what was to go.
        return self._claiming.in_our_name(lambda owner: self._prune(tier, checkpoints, spare, owner))

    def _prune(self, tier: str, checkpoints: frozenset[CheckpointId], spare: frozenset[ImageId], owner: int) -> Refused:
        found, lineage = self._tiers.catalog(tier), self._claiming.lineage()[0]
        there = {c for c in checkpoints if (e := found.get(c)) is not None and not e.tombstoned}
        last = prune.last_to_load(found, lineage, there)
        plan = prune.plan_delete(found, lineage, there - {last})
        prune.execute_prune(
            self._tiers[tier],
            plan,
            authority=self._tiers.authority,
            owner=owner,
            spare=spare,
            known=self._tiers.known(tier),
        )
        stay = {c: _blocked(tier, c, why) for c, why in plan.blocked if c in checkpoints}
        return stay if last is None else {**stay, last: _last(tier, last)}

    def sweep_steps(self, tier: str, checkpoints: frozenset[CheckpointId], spare: frozenset[ImageId]) -> Refused:
        """Remove images of steps that will never be committed on the tier."""
        found = self._tiers.catalog(tier)
        named = found.named().union(spare)
        images: list[ImageId] = []
        for checkpoint in sorted(checkpoints):
            entry = found.get(checkpoint)
            if entry is not None and not entry.committed and not entry.tombstoned:
                images += [i for i in entry.images if i not in named]
        self._sweep(tier, sweep.SweepPlan(tuple(images), 0))
        return {}

    def tidy(self, tier: str, found: Catalog, in_flight: Collection[CheckpointId]) -> None:
        """Remove images of old steps that no manifest names and no flight of any node.

        `in_flight` has to be newer than `found`: what began to be flushed in between is none of what was found.
        """
        self._sweep(tier, sweep.plan_sweep(found, in_flight=in_flight))

    def _sweep(self, tier: str, plan: sweep.SweepPlan) -> None:
        self._claiming.in_our_name(
            lambda owner: sweep.execute_sweep(self._tiers[tier], plan, authority=self._tiers.authority, owner=owner)
        )


def _last(tier: str, checkpoint: CheckpointId) -> HoldfastError:
    return UsageError(
        f"{checkpoint} is the last that can be loaded there and is not pruned yet",
        hint="it goes once another one is committed there",
        tier=tier,
        step=checkpoint.step,
    )


def _blocked(tier: str, checkpoint: CheckpointId, why: str) -> HoldfastError:
    return CorruptError(
        f"{checkpoint} is not pruned yet: {why}",
        hint="`holdfast verify URL --repair` re-makes a damaged manifest; tried again after the next commit there",
        tier=tier,
        step=checkpoint.step,
    )
