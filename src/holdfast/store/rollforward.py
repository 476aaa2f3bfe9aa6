"""Roll forward: commit steps whose images are all on a tier, but whose owner died before the commit."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.errors import CorruptError, HoldfastError
from holdfast.format import manifest as codec
from holdfast.format import names
from holdfast.format.checksum import BLOCK_BYTES
from holdfast.format.image import notes_of, plain_of
from holdfast.model.identity import CheckpointId, ImageId, Lineage
from holdfast.model.image import ImageHeader
from holdfast.model.manifest import Manifest
from holdfast.store.blocks import Progress, aligned_buffer, located, no_progress, read_header
from holdfast.store.catalog import Catalog, CatalogEntry
from holdfast.store.commit import publish_manifest
from holdfast.store.quarantine import quarantine
from holdfast.store.verify import BUFFER_BYTES, DAMAGE, ImageVerdict, verify_image
from holdfast.tiers.contract import Tier


@dataclass(frozen=True, slots=True)
class RolledForward:
    """What became of one uncommitted checkpoint: a manifest, or why there is none."""

    id: CheckpointId
    manifest: Manifest | None
    problem: HoldfastError | None = None


def candidates(catalog: Catalog, lineage: Lineage) -> list[CatalogEntry]:
    """Uncommitted checkpoints on the lineage with images and no tombstone, newest first.

    Only those newer than every loadable or tombstoned one: an older one may have been pruned, and be here again by a
    late flush after its tombstone has gone (a tombstone goes only once something newer is loadable).
    """
    floor = max((e.id for e in catalog if (e.loadable or e.tombstoned) and e.id in lineage), default=None)
    left = (e for e in reversed(catalog.entries) if e.images and not e.committed and not e.tombstoned)
    return [e for e in left if e.id in lineage and (floor is None or e.id > floor)]


def roll_forward(
    tier: Tier, authority: Tier, entry: CatalogEntry, *, owner: int, progress: Progress = no_progress
) -> RolledForward:
    """Read every image of a checkpoint; commit it if all are there and good.

    An incomplete step is told from headers alone. A bad image is quarantined. Reads the images once; memory is bounded.
    Idempotent.

    Raises: SupersededError; TierError where the tier itself fails.
    """
    try:
        manifest = proven_manifest(tier, entry, progress=progress)
        publish_manifest(tier, authority, manifest, owner=owner)
    except DAMAGE as e:
        return RolledForward(entry.id, None, e)
    return RolledForward(entry.id, manifest)


def proven_manifest(tier: Tier, entry: CatalogEntry, *, progress: Progress = no_progress) -> Manifest:
    """The manifest of a checkpoint, from its images on a tier, which are all read and proven.

    Raises: CorruptError, FormatVersionError, NotFoundError when they are not all there and good; a bad one is
        quarantined. TierError where the tier itself fails.
    """
    wanted = _wanted(tier, entry)
    buffer = aligned_buffer(BUFFER_BYTES)
    proven = [_proven(tier, image, buffer, progress) for image in sorted(wanted)]
    headers = [v.header for v in proven if v.header]
    first = next((h for h in headers if h.id.rank == 0 and h.id.checkpoint == entry.id), None)
    plain, notes = _read_plain(tier, first) if first else (None, b"")
    return codec.build(headers, [v.record for v in proven if v.record], plain, notes=notes)


def _wanted(tier: Tier, entry: CatalogEntry) -> set[ImageId]:
    """Every image the checkpoint consists of. Raises: CorruptError when one is not there."""
    if not entry.images:
        raise CorruptError(f"{entry.id} has no image there", tier=tier.name, step=entry.id.step)
    headers = [read_header(tier, names.image_key(i), size) for i, size in sorted(entry.images.items())]
    world_size = headers[0].world_size
    counts = {h.id.rank: h.image_count for h in headers}
    relied_on = {i for h in headers for i in h.relies_on}
    held = {(i.rank, i.image) for i in {*entry.images, *relied_on}}
    for rank in range(world_size):
        for image in range(counts.get(rank, 1)):
            if (rank, image) not in held:
                raise CorruptError(
                    f"{entry.id} is incomplete: image {image} of rank {rank} of {world_size} is not there",
                    tier=tier.name,
                    step=entry.id.step,
                )
    return {*entry.images, *relied_on}


def _proven(tier: Tier, image: ImageId, buffer: memoryview, progress: Progress) -> ImageVerdict:
    verdict = verify_image(tier, image, buffer=buffer, progress=progress)
    if verdict.error is not None:
        if isinstance(verdict.error, CorruptError):
            quarantine(tier, image, verdict.error.message)
        raise verdict.error
    return verdict


def _read_plain(tier: Tier, header: ImageHeader) -> tuple[bytes, bytes]:
    """The payload of an image's plain values, and its notes. It has been proven."""
    key, layout = names.image_key(header.id), header.layout
    room = memoryview(bytearray(layout.plain_capacity_bytes))
    for at in range(0, len(room), BLOCK_BYTES):
        tier.read_into(key, layout.plain_start + at, room[at : at + BLOCK_BYTES])
    return located(tier, key, lambda: (plain_of(room), notes_of(room)))
