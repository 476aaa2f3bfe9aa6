"""Repair: re-make a bad or missing copy from a good one. What is written was proven as it was read.

The order for one image. A crash after any line leaves a copy that nobody reads, or a good one:

1. the bad copy's quarantine record is put: nobody reads it, also if what follows fails;
2. the good bytes are uploaded beside it and take its name at once;
3. they are read back and compared;
4. the quarantine record goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Executor

from holdfast.errors import CorruptError, HoldfastError, NotFoundError
from holdfast.format import manifest as codec
from holdfast.format import names
from holdfast.format.blocks import BlockTable
from holdfast.model.identity import CheckpointId
from holdfast.model.image import ImageRecord
from holdfast.model.manifest import Manifest
from holdfast.store.blocks import Progress, aligned_buffer, located, no_progress, read_header, read_table
from holdfast.store.catalog import CatalogEntry, is_tombstoned, read_manifest
from holdfast.store.flush import Source, flush_image, flush_while_sealed
from holdfast.store.quarantine import quarantine, release
from holdfast.store.rollforward import proven_manifest
from holdfast.store.verify import BUFFER_BYTES, verify_image
from holdfast.tiers.contract import Buffer, Tier


def repair_image(
    tier: Tier,
    record: ImageRecord,
    sources: Iterable[Tier],
    *,
    checkpoint: CheckpointId,
    reason: str,
    progress: Progress = no_progress,
) -> str:
    """Re-make the copy of an image that `checkpoint` names, from the first of `sources` whose copy is good; its name.

    Memory is bounded. Idempotent. Raises: NotFoundError when the checkpoint is not on the tier any more; CorruptError
    when no source has a good copy, or what was written cannot be read back; TierError of `tier`.
    """

    def copy_from_first() -> str:
        errors = []
        for source in sources:
            try:
                _copy(source, tier, record, progress)
            except HoldfastError as e:
                if e.tier != source.name:
                    raise
                errors.append(f"{source.name}: {e.message}")
                continue
            return source.name
        raise CorruptError(
            f"no good copy to repair {record.id} from: {'; '.join(errors) or 'no other tier has one'}",
            hint="keep an older checkpoint, or name a tier that has a good copy with --from",
            tier=tier.name,
            key=names.image_key(record.id),
            step=record.id.step,
        )

    return _guarded(tier, record, checkpoint, reason, copy_from_first)


def repair_image_from_memory(
    tier: Tier, record: ImageRecord, buffer: Buffer, pool: Executor, *, checkpoint: CheckpointId, reason: str
) -> None:
    """As `repair_image`, from a proven image in memory. Must not run on `pool` itself."""
    _guarded(tier, record, checkpoint, reason, lambda: flush_image(tier, record, buffer, pool, replace=True))


def flush_or_repair(tier: Tier, source: Source, pool: Executor, *, progress: Progress = no_progress) -> bool:
    """As `flush_while_sealed`; a damaged copy that stands under the key already is re-made.

    What it re-made, or found good, is in no quarantine any more: an earlier try may have ended before that.

    Raises: CorruptError when what stands there is whole and another image, or a manifest there says so.
    """
    try:
        written = flush_while_sealed(tier, source, pool, progress=progress)
        if written:
            return True
    except CorruptError as e:
        record = source.sealed()
        damage = verify_image(tier, record.id).error
        if not isinstance(damage, CorruptError) or _names_another(tier, record):
            raise
        quarantine(tier, record.id, e.message)
        written = flush_while_sealed(tier, source, pool, progress=progress, replace=True)
    release(tier, source.image)
    return written


def repair_manifest(tier: Tier, entry: CatalogEntry, sources: Iterable[Tier]) -> str:
    """Re-make a manifest that cannot be read: a copy of another tier's, else anew from the images, which are all read.

    Returns where it came from. Atomicity: one put. Idempotent.
    Raises: NotFoundError when its deletion has begun; CorruptError when the images are not whole either; TierError.
    """
    _require_committed(tier, entry.id)
    for source in sources:
        try:
            manifest = read_manifest(source, entry.id)
        except HoldfastError:
            continue  # another source, or the images, which say what is wrong
        if _is_of(tier, entry, manifest):
            _put_manifest(tier, manifest)
            return source.name
    _put_manifest(tier, proven_manifest(tier, entry))
    return "its images"


def _put_manifest(tier: Tier, manifest: Manifest) -> None:
    """In the place of the bad one; reading may have taken long, and what was deleted meanwhile is not brought back."""
    _require_committed(tier, manifest.id)
    key = names.manifest_key(manifest.id)
    tier.put(key, memoryview(codec.encode(manifest)))
    if is_tombstoned(tier, manifest.id):  # its deletion began between the look and the put
        tier.delete(key)
        _require_committed(tier, manifest.id)


def _is_of(tier: Tier, entry: CatalogEntry, manifest: Manifest) -> bool:
    """Whether a manifest is of the images here: some tell their checksum, and none another. Not one of another run."""
    told = []
    for record in manifest.images:
        if record.id in entry.images:
            key = names.image_key(record.id)
            try:
                layout = read_header(tier, key, entry.images[record.id]).layout
                told.append(read_table(tier, key, layout).whole_crc64nvme == record.crc64nvme)
            except (CorruptError, NotFoundError):
                continue
    return bool(told) and all(told)


def _guarded(
    tier: Tier, record: ImageRecord, checkpoint: CheckpointId, reason: str, write: Callable[[], str | bool]
) -> str:
    _require_committed(tier, checkpoint)
    quarantine(tier, record.id, reason)
    made_from = write()
    error = verify_image(tier, record.id, record=record).error
    if error is not None:
        quarantine(tier, record.id, f"re-made, and bad again: {error.message}")
        raise error
    release(tier, record.id)
    return str(made_from)


def _require_committed(tier: Tier, checkpoint: CheckpointId) -> None:
    """A checkpoint that retention removes meanwhile is nothing to repair; a late image is swept."""
    try:
        tier.size(names.manifest_key(checkpoint))
        deleted = is_tombstoned(tier, checkpoint)
    except NotFoundError:
        deleted = True
    if deleted:
        raise NotFoundError(
            f"{checkpoint} is not committed there any more, so that nothing is repaired",
            tier=tier.name,
            step=checkpoint.step,
        )


def _names_another(tier: Tier, record: ImageRecord) -> bool:
    """Whether the manifest of the image's own step, where it stands, calls for other bytes."""
    try:
        images = read_manifest(tier, record.id.checkpoint).images
    except (NotFoundError, CorruptError):
        return False
    return any(r.id == record.id and r != record for r in images)


def _copy(source: Tier, target: Tier, record: ImageRecord, progress: Progress) -> None:
    """Put the image in the place of what is there, each part proven before it is written.

    Raises: errors that name the tier that failed.
    """
    key, size = names.image_key(record.id), record.size_bytes
    found = source.size(key)
    if found != size:
        raise CorruptError(f"the image has {found} bytes, {size} were committed", tier=source.name, key=key)
    layout = read_header(source, key, size).layout
    tail = aligned_buffer(size - layout.table_start)
    source.read_into(key, layout.table_start, tail)
    table = located(source, key, lambda: BlockTable(tail, layout))
    if table.whole_crc64nvme != record.crc64nvme:
        raise CorruptError(
            f"the image has checksum {table.whole_crc64nvme:016x}, {record.crc64nvme:016x} was committed",
            tier=source.name,
            key=key,
        )
    buffer = aligned_buffer(BUFFER_BYTES)
    upload = target.upload(key, size)
    try:
        for start in range(0, layout.table_start, BUFFER_BYTES):
            part = buffer[: min(BUFFER_BYTES, layout.table_start - start)]
            source.read_into(key, start, part)
            _check(source, key, table, start, part)
            upload.write(start, part)
            progress(len(part))
        upload.write(layout.table_start, tail)
        upload.publish(if_absent=False)
    except BaseException:
        upload.abort()
        raise


def _check(source: Tier, key: str, table: BlockTable, start: int, part: Buffer) -> None:
    located(source, key, lambda: table.check(start, part))
