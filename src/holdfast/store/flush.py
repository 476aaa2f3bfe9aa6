"""Flush: an image from memory to a tier, by parts."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from holdfast.errors import AlreadyExistsError, CorruptError, NotFoundError
from holdfast.format import names
from holdfast.model.identity import ImageId
from holdfast.model.image import ImageRecord
from holdfast.store.blocks import Progress, no_progress
from holdfast.store.parts import run_parts
from holdfast.store.verify import verify_image
from holdfast.tiers.contract import Buffer, Tier


@dataclass(frozen=True, slots=True)
class Source:
    """An image in memory whose block table may still be filled while it is flushed: the table goes last.

    Attributes:
        buffer: the whole image; not looked at any more once the flush has returned, also by an exception.
        final_bytes: how much from the front will not change any more.
        sealed: waits for the table; its error ends the flush, and nothing appears on the tier.
    """

    image: ImageId
    buffer: Buffer
    final_bytes: int
    sealed: Callable[[], ImageRecord]


def flush_image(
    tier: Tier,
    record: ImageRecord,
    buffer: Buffer,
    pool: Executor,
    *,
    progress: Progress = no_progress,
    replace: bool = False,
) -> bool:
    """Write a whole image to a tier; else as `flush_while_sealed`."""
    if len(buffer) != record.size_bytes:
        raise ValueError(f"a buffer of {len(buffer)} bytes for an image of {record.size_bytes}")
    source = Source(record.id, buffer, len(buffer), lambda: record)
    return flush_while_sealed(tier, source, pool, progress=progress, replace=replace)


def flush_while_sealed(
    tier: Tier, source: Source, pool: Executor, *, progress: Progress = no_progress, replace: bool = False
) -> bool:
    """Write an image to a tier. Returns whether it was written.

    False: the same bytes stand there already, by an earlier flush or by this one, whose answer was lost, and were read
    back to prove it.

    Must not run on `pool` itself.

    Args:
        replace: put a good copy in the place of a bad one (repair).

    Atomicity: the upload's publish. Durability: as the tier's. Idempotent.

    Raises: CorruptError when other bytes stand under the key; TierError. A failed flush leaves nothing on the tier.
    """
    if not replace and _stands(tier, names.image_key(source.image)):
        _prove(tier, source.sealed())
        return False
    try:
        _upload(tier, source, pool, progress, if_absent=not replace)
    except AlreadyExistsError:
        _prove(tier, source.sealed())
        return False
    return True


def _upload(tier: Tier, source: Source, pool: Executor, progress: Progress, *, if_absent: bool) -> None:
    buffer, part_bytes = source.buffer, tier.capabilities.part_bytes
    early = source.final_bytes - source.final_bytes % part_bytes
    upload = tier.upload(names.image_key(source.image), len(buffer))

    def part(begin: int) -> None:
        data = buffer[begin : begin + part_bytes]
        upload.write(begin, data)
        progress(len(data))

    try:
        run_parts(pool, part, range(0, early, part_bytes))
        source.sealed()
        run_parts(pool, part, range(early, len(buffer), part_bytes))
        upload.publish(if_absent=if_absent)
    except BaseException:
        upload.abort()
        raise


def _stands(tier: Tier, key: str) -> bool:
    try:
        tier.size(key)
    except NotFoundError:
        return False
    return True


def _prove(tier: Tier, record: ImageRecord) -> None:
    """An image that stands already has to be this one, bit for bit."""
    error = verify_image(tier, record.id, record=record).error
    if error is None:
        return
    if not isinstance(error, CorruptError):
        raise error
    raise CorruptError(
        f"other bytes stand under its key: {error.message}",
        hint="another job may save there: give each run a directory of its own, or look with `holdfast verify URL`",
        tier=tier.name,
        key=names.image_key(record.id),
        step=record.id.step,
    ) from error
