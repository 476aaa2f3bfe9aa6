"""The manifest: built from the headers of a checkpoint's images, and its bytes.

`build` is a pure function of the images, whatever the order they are given in, and refuses what does not cover every
tensor. The bytes are a line with checksum and length, then canonical JSON in columns:

    holdfast-manifest 0 0123456789abcdef 4711
    {"run":"run7","attempt":1,"step":100,…}
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

import msgspec

from holdfast.errors import CorruptError, FormatVersionError, UsageError
from holdfast.format.checksum import Buffer, crc64nvme
from holdfast.format.coverage import Rect, first_hole, first_overlap
from holdfast.format.layout import MAX_BYTES, MAX_DIMS
from holdfast.format.names import MAX_ATTEMPT, MAX_IMAGE, MAX_RANK, MAX_STEP
from holdfast.format.records import strictly
from holdfast.model.identity import CheckpointId, ImageId
from holdfast.model.image import ImageHeader, ImageRecord
from holdfast.model.manifest import Chunk, Manifest, TensorRecord

MAX_MANIFEST_BYTES = 256 * 2**20
MAX_INLINE_PLAIN_BYTES = 64 * 1024

_LINE = re.compile(rb"holdfast-manifest (0|[1-9][0-9]{0,8}) ([0-9a-f]{16}) (0|[1-9][0-9]{0,17})\n")
_MAX_LINE_BYTES = 80


# From images ---------------------------------------------------------------------------------------------------------
def build(headers: Iterable[ImageHeader], records: Iterable[ImageRecord], plain: bytes | None) -> Manifest:
    """The manifest of the checkpoint these images are.

    `plain` is the payload of rank 0's plain values, kept if small. Images of older steps are allowed where a header
    relies on them.

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
    )
    check_coverage(manifest.tensors)
    return manifest


def check_coverage(tensors: Iterable[TensorRecord]) -> None:
    """Refuse tensors that are not completely there.

    Rectangles of different images may overlap (replicas); those of one image may not.

    Raises:
        CorruptError: naming the first hole.
    """
    for tensor in tensors:
        if tensor.alias_of is not None:
            continue
        hole = first_hole(((c.offsets, c.lengths) for c in tensor.chunks), tensor.shape)
        if hole is not None:
            raise CorruptError(f"no image holds element {hole} of {tensor.fqn!r}, whose shape is {tensor.shape}")
        if len(tensor.chunks) == len({c.image for c in tensor.chunks}):
            continue
        by_image: dict[int, list[Rect]] = {}
        for chunk in tensor.chunks:
            by_image.setdefault(chunk.image, []).append((chunk.offsets, chunk.lengths))
        for rects in by_image.values():
            if len(rects) > 1 and first_overlap(rects) is not None:
                raise CorruptError(f"one image holds overlapping pieces of {tensor.fqn!r}")


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
        TensorRecord(fqn, *what[fqn, owner], _sorted(chunks[fqn, owner]), None if owner < 0 else owner)
        for fqn, owner in what
    ]
    tensors += [_alias(alias, target, what) for alias, target in aliases.items()]
    return tuple(sorted(tensors, key=_order))


def _alias(alias: str, target: str, what: dict[tuple[str, int], tuple[tuple[int, ...], str]]) -> TensorRecord:
    if (alias, -1) in what or (target, -1) not in what:
        raise CorruptError(f"{alias!r} is a tensor of its own, or an alias of nothing: {target!r}")
    shape, dtype = what[target, -1]
    return TensorRecord(alias, shape, dtype, (), alias_of=target)


def _sorted(chunks: list[Chunk]) -> tuple[Chunk, ...]:
    return tuple(sorted(chunks, key=lambda c: (c.image, c.offsets, c.lengths)))


def _order(tensor: TensorRecord) -> tuple[str, int]:
    return tensor.fqn, -1 if tensor.owner_rank is None else tensor.owner_rank


# Bytes ---------------------------------------------------------------------------------------------------------------
class _Images(msgspec.Struct, forbid_unknown_fields=True):
    """Columns, one item per image. `step` is that of the image: an older one where it is shared."""

    rank: list[int]
    image: list[int]
    step: list[int]
    size_bytes: list[int]
    crc64nvme: list[str]


_ChunkJson = int | tuple[int, list[int], list[int]]


class _Tensors(msgspec.Struct, forbid_unknown_fields=True):
    """Columns, one item per tensor. A chunk that is the whole tensor is the number of its image alone."""

    fqn: list[str]
    dtype: list[str]
    shape: list[list[int]]
    chunks: list[list[_ChunkJson]]
    owner_rank: dict[str, int]
    """By position in the columns, where a tensor has an owner."""
    alias_of: dict[str, str]
    """By position in the columns, where a tensor is an alias."""


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    run: str
    attempt: int
    step: int
    world_size: int
    structure: str
    images: _Images
    tensors: _Tensors
    plain: str | None


def encode(manifest: Manifest) -> bytes:
    """The bytes of a manifest: the same for equal manifests, always."""
    try:
        body = msgspec.json.encode(_to_body(manifest))
    except UnicodeEncodeError as e:
        raise UsageError(f"a name is not valid text: {e.object[:80]!r}") from None
    if len(body) > MAX_MANIFEST_BYTES - _MAX_LINE_BYTES:
        raise UsageError(f"a manifest of {len(body)} bytes passes the limit of {MAX_MANIFEST_BYTES}")
    return b"holdfast-manifest 0 %016x %d\n" % (crc64nvme(body), len(body)) + body


def decode(data: Buffer) -> Manifest:
    """The manifest these bytes are.

    Raises:
        CorruptError: they are none, or contradict themselves.
        FormatVersionError: a newer Holdfast wrote them.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise CorruptError(f"a manifest of {len(data)} bytes passes the limit of {MAX_MANIFEST_BYTES}")
    whole = bytes(data)
    line = _LINE.match(whole[:_MAX_LINE_BYTES])
    if line is None:
        raise CorruptError("the bytes do not begin as a manifest does")
    body = whole[line.end() :]
    if int(line[1]) != 0:
        raise FormatVersionError(f"the manifest has version {int(line[1])}, this Holdfast reads 0")
    if len(body) != int(line[3]) or crc64nvme(body) != int(line[2], 16):
        raise CorruptError("the manifest does not match its length and checksum")
    manifest = _from_body(strictly(body, _Body, "the manifest"))
    check_coverage(manifest.tensors)
    return manifest


def _to_body(manifest: Manifest) -> _Body:
    images, tensors = manifest.images, manifest.tensors
    return _Body(
        run=manifest.run,
        attempt=manifest.id.attempt,
        step=manifest.id.step,
        world_size=manifest.world_size,
        structure=manifest.structure,
        images=_Images(
            rank=[i.id.rank for i in images],
            image=[i.id.image for i in images],
            step=[i.id.step for i in images],
            size_bytes=[i.size_bytes for i in images],
            crc64nvme=[f"{i.crc64nvme:016x}" for i in images],
        ),
        tensors=_Tensors(
            fqn=[t.fqn for t in tensors],
            dtype=[t.dtype for t in tensors],
            shape=[list(t.shape) for t in tensors],
            chunks=[[_chunk_to_json(c, t.shape) for c in t.chunks] for t in tensors],
            owner_rank={str(n): t.owner_rank for n, t in enumerate(tensors) if t.owner_rank is not None},
            alias_of={str(n): t.alias_of for n, t in enumerate(tensors) if t.alias_of is not None},
        ),
        plain=None if manifest.plain is None else base64.b64encode(manifest.plain).decode(),
    )


def _chunk_to_json(chunk: Chunk, shape: tuple[int, ...]) -> _ChunkJson:
    return chunk.image if chunk.lengths == shape else (chunk.image, list(chunk.offsets), list(chunk.lengths))


def _from_body(body: _Body) -> Manifest:
    _ranges(body)
    checkpoint = CheckpointId(body.attempt, body.step)
    manifest = Manifest(
        format_version=0,
        run=body.run,
        id=checkpoint,
        world_size=body.world_size,
        structure=body.structure,
        images=_images_from(body),
        tensors=_tensors_from(body.tensors, len(body.images.rank), body.world_size),
        plain=_plain_from(body.plain),
    )
    # One comparison for all that could be written in two ways: order, a whole tensor spelt out, keys of no tensor.
    if _to_body(manifest) != body:
        raise CorruptError("the manifest is not in canonical form")
    return manifest


def _ranges(body: _Body) -> None:
    if not (
        0 <= body.attempt <= MAX_ATTEMPT
        and 0 <= body.step <= MAX_STEP
        and 0 < body.world_size <= MAX_RANK + 1
        and len(body.structure) <= 128
    ):
        raise CorruptError("the manifest names impossible numbers")


def _images_from(body: _Body) -> tuple[ImageRecord, ...]:
    columns = body.images
    count = len(columns.rank)
    if not count or any(len(c) != count for c in (columns.image, columns.step, columns.size_bytes, columns.crc64nvme)):
        raise CorruptError("the columns of images differ in length, or are empty")
    found = []
    for rank, image, step, size, crc in zip(
        columns.rank, columns.image, columns.step, columns.size_bytes, columns.crc64nvme, strict=True
    ):
        possible = 0 <= rank < body.world_size and 0 <= image <= MAX_IMAGE and 0 <= step <= body.step
        if not possible or not 0 < size <= MAX_BYTES or not re.fullmatch("[0-9a-f]{16}", crc):
            raise CorruptError(f"image {image} of rank {rank} has impossible numbers")
        found.append(ImageRecord(ImageId(body.attempt, step, rank, image), size, int(crc, 16)))
    places = [(r.id.rank, r.id.image) for r in found]
    if places != sorted(set(places)) or len({rank for rank, _ in places}) != body.world_size:
        raise CorruptError("images are out of order, named twice, or missing")
    return tuple(found)


def _tensors_from(columns: _Tensors, image_count: int, world_size: int) -> tuple[TensorRecord, ...]:
    count = len(columns.fqn)
    if any(len(c) != count for c in (columns.dtype, columns.shape, columns.chunks)):
        raise CorruptError("the columns of tensors differ in length")
    found = []
    for n, (fqn, dtype, dims, items) in enumerate(
        zip(columns.fqn, columns.dtype, columns.shape, columns.chunks, strict=True)
    ):
        shape, owner = tuple(dims), columns.owner_rank.get(str(n))
        if len(shape) > MAX_DIMS or not all(0 <= d <= MAX_BYTES for d in shape):
            raise CorruptError(f"{fqn[:80]!r} has an impossible shape")
        if owner is not None and not 0 <= owner < world_size:
            raise CorruptError(f"{fqn[:80]!r} belongs to rank {owner} of {world_size}")
        chunks = tuple(_chunk_from(item, shape, image_count, fqn) for item in items)
        if chunks != _sorted(list(chunks)):
            raise CorruptError(f"the chunks of {fqn[:80]!r} are out of order")
        found.append(TensorRecord(fqn, shape, dtype, chunks, owner, columns.alias_of.get(str(n))))
    _check_names(found)
    return tuple(found)


def _check_names(tensors: Sequence[TensorRecord]) -> None:
    order = [_order(t) for t in tensors]
    if any(a >= b for a, b in pairwise(order)):
        raise CorruptError("tensors are out of order or named twice")
    real = {t.fqn: t for t in tensors if t.alias_of is None and t.owner_rank is None}
    for tensor in tensors:
        if tensor.alias_of is None:
            continue
        target = real.get(tensor.alias_of)
        if tensor.chunks or tensor.owner_rank is not None or target is None:
            raise CorruptError(f"{tensor.fqn[:80]!r} is no possible alias")
        if (target.shape, target.dtype) != (tensor.shape, tensor.dtype):
            raise CorruptError(f"{tensor.fqn[:80]!r} differs from the tensor it is an alias of")


def _chunk_from(item: _ChunkJson, shape: tuple[int, ...], image_count: int, fqn: str) -> Chunk:
    if isinstance(item, int):
        image, offsets, lengths = item, (0,) * len(shape), shape
    else:
        image, offsets, lengths = item[0], tuple(item[1]), tuple(item[2])
    inside = (
        0 <= image < image_count
        and len(offsets) == len(lengths) == len(shape)
        and all(o >= 0 and n >= 0 and o + n <= s for o, n, s in zip(offsets, lengths, shape, strict=True))
    )
    if not inside:
        raise CorruptError(f"a chunk of {fqn[:80]!r} lies outside of it, or in no image")
    return Chunk(image, offsets, lengths)


def _plain_from(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        plain = base64.b64decode(text, validate=True)
    except ValueError:
        raise CorruptError("the plain values of the manifest are not base64") from None
    if len(plain) > MAX_INLINE_PLAIN_BYTES:
        raise CorruptError("the plain values of the manifest are too long to stand inline")
    return plain
