"""Commit: publish the manifest of a checkpoint whose images are all there."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from holdfast.errors import AlreadyExistsError, CorruptError, NotFoundError
from holdfast.format import manifest as codec
from holdfast.format import names
from holdfast.model.identity import CheckpointId, ImageId
from holdfast.model.image import ImageHeader, ImageRecord
from holdfast.model.manifest import Manifest
from holdfast.store.attempts import require_authority
from holdfast.store.catalog import is_tombstoned
from holdfast.store.quarantine import quarantined
from holdfast.tiers.contract import Tier, read_all

CallsFor = Callable[[ImageId], bool]


def commit(  # noqa: PLR0913  what a checkpoint is, and who says so
    tier: Tier,
    authority: Tier,
    *,
    owner: int,
    headers: Iterable[ImageHeader],
    records: Iterable[ImageRecord],
    plain: bytes | None,
    notes: bytes = b"",
    calls_for: CallsFor = lambda image: True,
) -> Manifest:
    """Build the manifest from what the images say, and publish it. See `publish_manifest`.

    Raises: also CorruptError when the images do not cover every tensor.
    """
    manifest = codec.build(headers, records, plain, notes=notes)
    publish_manifest(tier, authority, manifest, owner=owner, calls_for=calls_for)
    return manifest


def publish_manifest(
    tier: Tier,
    authority: Tier,
    manifest: Manifest,
    *,
    owner: int,
    calls_for: CallsFor = lambda image: True,
) -> None:
    """Make a checkpoint durable on `tier`: its images are there already, its manifest appears.

    Args:
        authority: the tier attempts are claimed on.
        owner: the attempt that acts.
        calls_for: which images have to be on this tier; on a node-scoped tier those of the node.

    Atomicity: one put. Durability: as the tier's. Idempotent: equal bytes that stand already are success.
    Commit and prune on one tier belong to one owner, which may run them at once: a deletion of this checkpoint that
    begins between the look and the put is found after it, and one of another step has to spare the images that this one
    names (`execute_prune`). A higher attempt claimed between the look and the put does no harm: the manifest then
    stands on no lineage and is never loaded in place of a newer.

    Raises: SupersededError when a higher attempt owns the run or does not stand on this checkpoint; NotFoundError when
        the checkpoint's deletion has begun; CorruptError when an image is not there in full or in quarantine, or
        another manifest is there.
    """
    checkpoint = manifest.id
    require_authority(authority, owner, checkpoint)
    _refuse_deleted(tier, checkpoint)
    _require_images(tier, [r for r in manifest.images if calls_for(r.id)], checkpoint)
    key, data = names.manifest_key(checkpoint), codec.encode(manifest)
    try:
        tier.put(key, memoryview(data), if_absent=True)
    except AlreadyExistsError:
        if read_all(tier, key) != data:
            raise CorruptError(
                "another manifest stands there already",
                hint=f"look at it with `holdfast show --step {checkpoint.step}` and verify it",
                tier=tier.name,
                key=key,
                step=checkpoint.step,
            ) from None
    if is_tombstoned(tier, checkpoint):  # its deletion began between the look and the put
        tier.delete(key)
        _refuse_deleted(tier, checkpoint)


def _refuse_deleted(tier: Tier, checkpoint: CheckpointId) -> None:
    if is_tombstoned(tier, checkpoint):
        raise NotFoundError(f"{checkpoint} is being deleted", tier=tier.name, step=checkpoint.step)


def _require_images(tier: Tier, records: list[ImageRecord], checkpoint: CheckpointId) -> None:
    """Settle the images and count them.

    Raises: CorruptError naming the first image that is not there in full."""
    sizes: dict[str, int] = {}
    for prefix in sorted({names.step_prefix(r.id.checkpoint) for r in records}):
        tier.settle(prefix)
        sizes |= {info.key: info.size_bytes for info in tier.list(prefix)}
    bad = quarantined(tier)
    for record in records:
        key = names.image_key(record.id)
        if sizes.get(key) != record.size_bytes or record.id in bad:
            found = f"has {sizes[key]} bytes" if key in sizes else "is not there"
            found = "is in quarantine" if record.id in bad else found
            raise CorruptError(
                f"{record.id} {found}, {record.size_bytes} were told", tier=tier.name, key=key, step=checkpoint.step
            )
