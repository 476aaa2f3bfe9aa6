"""Prune: delete checkpoints by a plan that can be printed first and executed, again and again, later.

The order in which one checkpoint goes. A crash after any line leaves a state from which the same lines finish it, and
in none of them does a checkpoint seem loadable whose images are partly gone:

1. its tombstone is put: from here on it does not exist for anybody;
2. its manifest is deleted;
3. its images are deleted, but for those that another manifest names, though that goes next (an older step's image that
   only this one still named goes too), and those to be spared, and their quarantine records;
4. its tombstone is deleted, once a newer loadable checkpoint stands on this tier: until then it keeps a roll-forward
   from bringing the step back, and afterwards roll-forward looks at newer steps only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from holdfast.errors import CorruptError, NotFoundError, UsageError
from holdfast.format import attempt as codec
from holdfast.format import names
from holdfast.model.identity import CheckpointId, ImageId, Lineage
from holdfast.model.place import Keep
from holdfast.policy.retention import Reason, Verdict, judge
from holdfast.store.attempts import require_authority
from holdfast.store.catalog import Catalog, CatalogEntry, KnownManifests, read_catalog
from holdfast.store.quarantine import release
from holdfast.tiers.contract import Tier


@dataclass(frozen=True, slots=True)
class Deletion:
    """One checkpoint that goes, and what goes with it."""

    id: CheckpointId
    reason: Reason
    images: tuple[ImageId, ...]
    size_bytes: int
    drop_tombstone: bool
    """Whether a newer loadable checkpoint stands, so that the last line of the order may run."""


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What prune would do on one tier; nothing has been done yet. `blocked` go once the named problem is gone."""

    tier: str
    deletions: tuple[Deletion, ...]
    kept: tuple[Verdict, ...]
    blocked: tuple[tuple[CheckpointId, str], ...] = ()

    @property
    def size_bytes(self) -> int:
        return sum(d.size_bytes for d in self.deletions)


def plan_prune(
    catalog: Catalog,
    lineage: Lineage,
    *,
    keep: Keep,
    protected: Collection[CheckpointId] = (),
) -> PrunePlan:
    """What retention deletes on a tier. Pure.

    Only loadable checkpoints count for its rules; a damaged one is kept (it may be repaired) until it is older
    than everything kept. What a newer Holdfast wrote, or the tier failed to read, is not damaged, and stays. The newest
    loadable one stays whatever the settings.

    Args:
        protected: further checkpoints that stay: the newest verified one, those being loaded.
    """
    verdicts = judge(
        [e.id for e in catalog if e.loadable],
        lineage,
        keep,
        notes=catalog.notes,
        protected=protected,
    )
    kept = [v for v in verdicts if v.keep]
    oldest = min((v.id for v in kept), default=None)
    reasons = {v.id: v.reason for v in verdicts if not v.keep}
    for entry in catalog.committed:
        old = oldest is not None and entry.id < oldest and entry.id not in protected
        damaged = not entry.loadable and (entry.problem is None or isinstance(entry.problem, CorruptError))
        if old and keep.limits and damaged:
            reasons[entry.id] = Reason.DAMAGED
    return _plan(catalog, reasons, tuple(kept))


def plan_delete(catalog: Catalog, lineage: Lineage, checkpoints: Iterable[CheckpointId]) -> PrunePlan:
    """A plan for deleting exactly these. Pure.

    The newest one may be among them (it may have diverged), as long as another stays that can be loaded.

    Raises: NotFoundError; UsageError when nothing loadable would be left.
    """
    asked = set(checkpoints)
    for checkpoint in sorted(asked):
        entry = catalog.get(checkpoint)
        if entry is None or entry.tombstoned:
            raise NotFoundError(f"{checkpoint} is not there", tier=catalog.tier, step=checkpoint.step)
    last = last_to_load(catalog, lineage, asked)
    if last is not None:
        raise UsageError(
            f"{last} is the last that can be loaded and is never deleted",
            hint="save another one first; `holdfast prune URL --everything` starts the run over",
            tier=catalog.tier,
            step=last.step,
        )
    return _plan(catalog, dict.fromkeys(sorted(asked), Reason.ASKED), ())


def last_to_load(catalog: Catalog, lineage: Lineage, asked: Collection[CheckpointId]) -> CheckpointId | None:
    """The newest that can be loaded, if after a deletion of those `asked` for none could be. Pure."""
    loadable = {e.id for e in catalog if e.loadable and e.id in lineage} or {e.id for e in catalog if e.loadable}
    return max(loadable) if loadable and loadable <= set(asked) else None


def execute_prune(  # noqa: PLR0913  what, for whom, and what they know
    tier: Tier,
    plan: PrunePlan,
    *,
    authority: Tier,
    owner: int,
    spare: Collection[ImageId] = (),
    known: KnownManifests | None = None,
    done: Callable[[Deletion], None] = lambda deletion: None,
) -> None:
    """Do what a plan says, oldest first, in the order this module's docstring gives.

    What other manifests name is looked up anew, for some may have been committed since the plan was made; `spare` are
    images that a step still to be committed may name. `done` is told of each checkpoint that is gone. Durability: each
    line is on the disk before the next begins. Idempotent: after a crash or an error make a new plan (begun deletions
    are in it) and execute that.

    Raises: SupersededError when a higher attempt owns the run; TierError.
    """
    if not plan.deletions:
        return
    doomed = frozenset(d.id for d in plan.deletions)
    named = read_catalog(tier, known=known).named(besides=doomed).union(spare)
    to_come = Counter(image for deletion in plan.deletions for image in deletion.images)
    for deletion in plan.deletions:
        require_authority(authority, owner)
        to_come.subtract(deletion.images)
        _delete(tier, deletion, lambda image: image in named or to_come[image] > 0)
        done(deletion)


def _delete(tier: Tier, deletion: Deletion, stays: Callable[[ImageId], bool]) -> None:
    tombstone = names.tombstone_key(deletion.id)
    tier.put(tombstone, memoryview(codec.encode_tombstone(deletion.id)))
    tier.delete(names.manifest_key(deletion.id))
    for image in deletion.images:
        if not stays(image):
            tier.delete(names.image_key(image))
            release(tier, image)
    if deletion.drop_tombstone:
        tier.delete(tombstone)


def _plan(catalog: Catalog, reasons: dict[CheckpointId, Reason], kept: tuple[Verdict, ...]) -> PrunePlan:
    """Deletions for `reasons` and for everything whose deletion has begun."""
    reasons = {**reasons, **{e.id: Reason.RESUMED for e in catalog if e.tombstoned}}
    named = catalog.named(besides=frozenset(reasons))
    newest = max((e.id for e in catalog if e.loadable and e.id not in reasons), default=None)
    sizes = catalog.image_sizes
    riddles = [e.id for e in catalog.committed if e.problem is not None and e.id not in reasons]
    deletions, blocked = [], []
    for entry in catalog:
        if entry.id not in reasons:
            continue
        riddle = _may_be_named(entry.id, riddles)
        if riddle is not None:
            blocked.append((entry.id, f"{riddle} may share its images, and its manifest cannot be read"))
            continue
        images = tuple(sorted(_images(entry) - named))
        freed = sum(sizes.get(i, 0) for i in images)
        later = newest is not None and newest > entry.id
        if entry.tombstoned and not images and entry.manifest is None and entry.problem is None and not later:
            continue  # only its tombstone is left, and has to stay
        deletions.append(Deletion(entry.id, reasons[entry.id], images, freed, later))
    return PrunePlan(catalog.tier, tuple(deletions), kept, tuple(blocked))


def _images(entry: CatalogEntry) -> set[ImageId]:
    return {*entry.images, *(r.id for r in (entry.manifest.images if entry.manifest else ()))}


def _may_be_named(checkpoint: CheckpointId, riddles: Iterable[CheckpointId]) -> CheckpointId | None:
    """A kept checkpoint of the same attempt whose unreadable manifest may name images of this older one."""
    return next((r for r in riddles if r.attempt == checkpoint.attempt and r > checkpoint), None)
