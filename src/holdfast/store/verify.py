"""Verify: read a checkpoint's images back and compare every byte. A bad image is a result, never an exception."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from holdfast.errors import CorruptError, FormatVersionError, HoldfastError, NotFoundError
from holdfast.format import names
from holdfast.format.checksum import BLOCK_BYTES
from holdfast.model.identity import ImageId
from holdfast.model.image import ImageHeader, ImageRecord
from holdfast.model.manifest import Manifest
from holdfast.store.blocks import Progress, aligned_buffer, located, no_progress, read_header, read_table
from holdfast.tiers.contract import Tier

BUFFER_BYTES = 4 * BLOCK_BYTES
DAMAGE = (CorruptError, FormatVersionError, NotFoundError)
"""What an image or a manifest can show when read; anything else is the tier's failure, not the image's."""

Proven = dict[ImageRecord, int]
"""Images whose every byte was right, each with a hash of what its manifest said of it."""
Held = frozenset[tuple[str, tuple[int, ...], tuple[int, ...], int | None]]
"""(fqn, offsets, lengths, owner rank) of what an image holds."""


@dataclass(frozen=True, slots=True)
class ImageVerdict:
    """What reading one image said. `record` is what its bytes truly are, where they could be read and proven; `again`:
    it was read for another checkpoint, and not read twice."""

    id: ImageId
    key: str
    size_bytes: int
    error: HoldfastError | None = None
    header: ImageHeader | None = None
    record: ImageRecord | None = None
    again: bool = False

    @property
    def ok(self) -> bool:
        return self.error is None


def verify_checkpoint(
    tier: Tier,
    manifest: Manifest,
    *,
    buffer: memoryview | None = None,
    progress: Progress = no_progress,
    proven: Proven | None = None,
) -> Iterator[ImageVerdict]:
    """Read every image the manifest names; one verdict per image, as it is done.

    Args:
        proven: what was read before and is right, by several calls on one tier: it is not read again, and grows.

    Memory: `buffer` (None: one of 16 MiB is made), headers and tables. Its length is a multiple of BLOCK_BYTES.
    """
    buffer = aligned_buffer(BUFFER_BYTES) if buffer is None else buffer
    held = _held(manifest)
    for index, record in enumerate(manifest.images):
        said = _said(manifest, held[index]) if proven is not None else 0
        if proven is not None and proven.get(record) == said:
            yield ImageVerdict(record.id, names.image_key(record.id), record.size_bytes, record=record, again=True)
            continue
        verdict = verify_image(tier, record.id, record=record, buffer=buffer, progress=progress)
        if verdict.header is not None and verdict.ok:
            error = _compare(verdict.header, manifest, held[index])
            if error:
                problem = CorruptError(error, tier=tier.name, key=verdict.key, step=manifest.id.step)
                verdict = ImageVerdict(record.id, verdict.key, record.size_bytes, problem, verdict.header)
        if proven is not None and verdict.ok:
            proven[record] = said
        yield verdict


def find_damage(tier: Tier, manifest: Manifest, *, progress: Progress = no_progress) -> HoldfastError | None:
    """The first damage of a checkpoint; None when every byte of every image is as it was saved.

    Raises: TierError when the tier failed, which says nothing of the bytes.
    """
    for verdict in verify_checkpoint(tier, manifest, progress=progress):
        if isinstance(verdict.error, DAMAGE):
            return verdict.error
        if verdict.error is not None:
            raise verdict.error
    return None


def verify_image(
    tier: Tier,
    image: ImageId,
    *,
    record: ImageRecord | None = None,
    buffer: memoryview | None = None,
    progress: Progress = no_progress,
) -> ImageVerdict:
    """Read one image and compare blocks, table, identity and, given a record, length and whole checksum."""
    key = names.image_key(image)
    size_bytes = record.size_bytes if record else 0
    try:
        size_bytes = tier.size(key)
        if record is not None and size_bytes != record.size_bytes:
            raise CorruptError(f"the image has {size_bytes} bytes, {record.size_bytes} were committed")
        header = read_header(tier, key, size_bytes)
        if header.id != image:
            raise CorruptError(f"the header says {header.id}")
        buffer = aligned_buffer(BUFFER_BYTES) if buffer is None else buffer
        crc = located(tier, key, lambda: _read_through(tier, key, header, buffer, progress))
        if record is not None and crc != record.crc64nvme:
            raise CorruptError(f"the image has checksum {crc:016x}, {record.crc64nvme:016x} was committed")
    except HoldfastError as e:
        e.tier, e.key, e.step = e.tier or tier.name, e.key or key, image.step
        return ImageVerdict(image, key, size_bytes, e)
    return ImageVerdict(image, key, size_bytes, None, header, ImageRecord(image, size_bytes, crc))


def _read_through(tier: Tier, key: str, header: ImageHeader, buffer: memoryview, progress: Progress) -> int:
    """Prove every block; the checksum of the whole image."""
    layout = header.layout
    table = read_table(tier, key, layout)
    for start in range(0, layout.table_start, len(buffer)):
        part = buffer[: min(len(buffer), layout.table_start - start)]
        tier.read_into(key, start, part)
        table.check(start, part)
        progress(len(part))
    progress(layout.size_bytes - layout.table_start)
    return table.whole_crc64nvme


def _held(manifest: Manifest) -> list[Held]:
    """What each image holds according to the manifest."""
    held: list[set[tuple[str, tuple[int, ...], tuple[int, ...], int | None]]] = [set() for _ in manifest.images]
    for tensor in manifest.tensors:
        for chunk in tensor.chunks:
            held[chunk.image].add((tensor.fqn, chunk.offsets, chunk.lengths, tensor.owner_rank))
    return [frozenset(h) for h in held]


def _said(manifest: Manifest, held: Held) -> int:
    """Equal where `_compare` would find the same: a hash of all it takes from the manifest."""
    names_held = {(fqn, owner) for fqn, _, _, owner in held}
    told = {(t.fqn, t.owner_rank, t.shape, t.dtype) for t in manifest.tensors if (t.fqn, t.owner_rank) in names_held}
    return hash((manifest.run, manifest.world_size, held, frozenset(told)))


def _compare(header: ImageHeader, manifest: Manifest, held: Held) -> str:
    """How header and manifest disagree; empty when they do not."""
    if (header.run, header.world_size) != (manifest.run, manifest.world_size):
        return f"the image is of run {header.run!r} and a world of {header.world_size}"
    pieces = [e.piece for e in header.layout.entries]
    if {(p.fqn, p.offsets, p.lengths, p.owner_rank) for p in pieces} != held:
        return "header and manifest disagree on what the image holds"
    told = {(t.fqn, t.owner_rank): (t.shape, t.dtype) for t in manifest.tensors}
    for piece in pieces:
        if told[piece.fqn, piece.owner_rank] != (piece.shape, piece.dtype):
            return f"header and manifest disagree on shape or dtype of {piece.fqn!r}"
    return ""
