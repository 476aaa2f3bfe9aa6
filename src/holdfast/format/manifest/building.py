"""Builds a manifest from what the images of a checkpoint say of themselves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from holdfast.errors import CorruptError
from holdfast.format import notes as notes_codec
from holdfast.format.manifest.coverage import check_coverage
from holdfast.model.identity import CheckpointId, ImageId
from holdfast.model.image import ImageHeader, ImageRecord
from holdfast.model.manifest import Chunk, Manifest, TensorRecord

MAX_INLINE_PLAIN_BYTES = 64 * 1024


def build(
    headers: Iterable[ImageHeader], records: Iterable[ImageRecord], plain: bytes | None, *, notes: bytes = b""
) -> Manifest:
    """The manifest of the checkpoint these images are.

    `plain` is the payload of rank 0's plain values, kept if small; `notes` are the bytes of its notes, if it has any.
    Images of older steps are allowed where a header relies on them.

    Raises:
        CorruptError: they are not one checkpoint, or do not cover every tensor completely.
    """
    ordered = sorted(headers, key=lambda h: (h.id.rank, h.id.image, h.id))
    if not ordered:
        raise CorruptError("a checkpoint without images is none")
    checkpoint = max(h.id.checkpoint for h in ordered)
    first = next(h for h in ordered if h.id.checkpoint == checkpoint)
    _check_family(ordered, checkpoint, first)
    manifest = Manifest(
        format_version=0,
        run=first.run,
        id=checkpoint,
        world_size=first.world_size,
        structure=ordered[0].structure,
        images=_match(ordered, records),
        tensors=_tensors(ordered),
        plain=plain if plain is not None and len(plain) <= MAX_INLINE_PLAIN_BYTES else None,
        notes=notes_codec.decode(notes) if notes else None,
    )
    check_coverage(manifest.tensors)
    return manifest


def _check_family(ordered: Sequence[ImageHeader], checkpoint: CheckpointId, first: ImageHeader) -> None:
    """All ranks, all images of each, one run, one world; older images only where relied on."""
    relied_on: set[ImageId] = set()
    for header in ordered:
        if (header.run, header.world_size, header.format_version) != (first.run, first.world_size, 0):
            raise CorruptError(f"{header.id} and {first.id} are not of one run and world")
        if header.id.checkpoint == checkpoint:
            relied_on.update(header.relies_on)
    held: dict[int, list[int]] = {}
    counts: dict[int, set[int]] = {}
    for header in ordered:
        if header.id.checkpoint != checkpoint:
            if header.id not in relied_on or header.id.attempt != checkpoint.attempt:
                raise CorruptError(f"{header.id} is no part of {checkpoint}")
        else:
            counts.setdefault(header.id.rank, set()).add(header.image_count)
        held.setdefault(header.id.rank, []).append(header.id.image)
    missing = relied_on - {h.id for h in ordered}
    if missing:
        raise CorruptError(f"{min(missing)} is relied on but not there")
    for rank in range(first.world_size):
        count = counts.get(rank, set())
        if len(count) != 1 or held[rank] != list(range(min(count))):
            raise CorruptError(f"the images of rank {rank} are not all there, once each: {held.get(rank, [])[:20]}")
    if len(held) != first.world_size:
        raise CorruptError(f"rank {max(held)} is not in a world of {first.world_size}")


def _match(ordered: Sequence[ImageHeader], records: Iterable[ImageRecord]) -> tuple[ImageRecord, ...]:
    by_id = {record.id: record for record in records}
    for header in ordered:
        record = by_id.get(header.id)
        if record is None or record.size_bytes != header.size_bytes:
            raise CorruptError(f"{header.id} has no record, or one of another length")
    if len(by_id) != len(ordered):
        raise CorruptError("there are records without images")
    return tuple(by_id[header.id] for header in ordered)


def _tensors(ordered: Sequence[ImageHeader]) -> tuple[TensorRecord, ...]:
    """Who holds what, sorted by name and owner."""
    what: dict[tuple[str, int], tuple[tuple[int, ...], str]] = {}
    chunks: dict[tuple[str, int], list[Chunk]] = {}
    aliases: dict[str, str] = {}
    for image, header in enumerate(ordered):
        for entry in header.layout.entries:
            piece = entry.piece
            key = (piece.fqn, -1 if piece.owner_rank is None else piece.owner_rank)
            if what.setdefault(key, (piece.shape, piece.dtype)) != (piece.shape, piece.dtype):
                raise CorruptError(
                    f"{piece.fqn!r} is {piece.dtype} {piece.shape} in {header.id}, "
                    f"elsewhere {what[key][1]} {what[key][0]}"
                )
            chunks.setdefault(key, []).append(Chunk(image, piece.offsets, piece.lengths))
        for alias, target in header.layout.aliases:
            if aliases.setdefault(alias, target) != target:
                raise CorruptError(
                    f"{alias!r} is an alias of {target!r} in {header.id}, elsewhere of {aliases[alias]!r}"
                )
    tensors = [
        TensorRecord(fqn, *what[fqn, owner], in_order(chunks[fqn, owner]), None if owner < 0 else owner)
        for fqn, owner in what
    ]
    tensors += [_alias(alias, target, what) for alias, target in aliases.items()]
    tensors.sort(key=by_name)
    check_names(tensors)
    return tuple(tensors)


def check_names(tensors: Sequence[TensorRecord]) -> None:
    """Refuse a name that is both a tensor of all ranks and one of a rank's own. Raises: CorruptError."""
    for a, b in pairwise(tensors):
        if a.fqn == b.fqn and (a.owner_rank is None or b.owner_rank is None):
            raise CorruptError(f"{a.fqn[:80]!r} names two things")


def _alias(alias: str, target: str, what: dict[tuple[str, int], tuple[tuple[int, ...], str]]) -> TensorRecord:
    if (alias, -1) in what or (target, -1) not in what:
        raise CorruptError(f"{alias!r} is a tensor of its own, or an alias of nothing: {target!r}")
    shape, dtype = what[target, -1]
    return TensorRecord(alias, shape, dtype, (), alias_of=target)


def in_order(chunks: Iterable[Chunk]) -> tuple[Chunk, ...]:
    """Chunks as a manifest has them."""
    return tuple(sorted(chunks, key=lambda c: (c.image, c.offsets, c.lengths)))


def by_name(tensor: TensorRecord) -> tuple[str, int]:
    """Where a tensor stands in a manifest: by name, then owner."""
    return tensor.fqn, -1 if tensor.owner_rank is None else tensor.owner_rank
