"""Sweep: remove images that no manifest and no flight names.

They are what a killed flush leaves: whole objects of a step that was never committed. Only images of checkpoints older
than the newest committed one are swept; newer ones may still be rolled forward.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from holdfast.format import names
from holdfast.model.identity import CheckpointId, ImageId
from holdfast.store.attempts import require_authority
from holdfast.store.catalog import Catalog, CatalogEntry
from holdfast.store.quarantine import release
from holdfast.tiers.contract import Tier


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """Images to remove, and their bytes. `loose` are quarantine records of images that are gone."""

    images: tuple[ImageId, ...]
    size_bytes: int
    loose: tuple[ImageId, ...] = ()


def plan_sweep(catalog: Catalog, *, in_flight: Collection[CheckpointId]) -> SweepPlan:
    """What to remove. Pure.

    Args:
        in_flight: checkpoints that some node is flushing or about to commit.
    """
    newest = max((e.id for e in catalog if e.loadable), default=None)
    named = catalog.named()
    sizes: dict[ImageId, int] = {}
    for entry in catalog:
        if newest is not None and entry.id < newest and entry.id not in in_flight and _is_left(catalog, entry):
            sizes |= {image: size for image, size in entry.images.items() if image not in named}
    here = catalog.image_sizes
    loose = tuple(sorted(i for i in catalog.quarantined if i not in here))
    return SweepPlan(tuple(sorted(sizes)), sum(sizes.values()), loose)


def execute_sweep(tier: Tier, plan: SweepPlan, *, authority: Tier, owner: int) -> int:
    """Remove them. Returns how many images.

    Durability: as the tier's delete. Idempotent. Raises: SupersededError; TierError.
    """
    if plan.images or plan.loose:
        require_authority(authority, owner)
    for image in plan.images:
        tier.delete(names.image_key(image))
        release(tier, image)
    for image in plan.loose:
        release(tier, image)
    return len(plan.images)


def _is_left(catalog: Catalog, entry: CatalogEntry) -> bool:
    """Never committed, not being deleted, and surely unnamed: no unreadable manifest of its attempt is newer."""
    if entry.committed or entry.tombstoned:
        return False
    unreadable = (e.id for e in catalog.committed if e.problem is not None)
    return not any(i.attempt == entry.id.attempt and i > entry.id for i in unreadable)
