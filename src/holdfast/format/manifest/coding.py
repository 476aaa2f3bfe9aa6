"""A manifest's bytes: a line with checksum and length, then canonical JSON in columns.

holdfast-manifest 0 0123456789abcdef 4711
{"run":"run7","attempt":1,"step":100,…}
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from itertools import pairwise

import msgspec

from holdfast.errors import CorruptError, FormatVersionError, UsageError
from holdfast.format.checksum import Buffer, crc64nvme
from holdfast.format.limits import MAX_BYTES, MAX_DIMS, is_dtype, is_name, is_structure, is_tensor_name
from holdfast.format.manifest.building import MAX_INLINE_PLAIN_BYTES, by_name, check_names, in_order
from holdfast.format.manifest.coverage import check_coverage
from holdfast.format.names import MAX_ATTEMPT, MAX_IMAGE, MAX_RANK, MAX_STEP
from holdfast.format.notes import NotesRecord, from_record, to_record
from holdfast.format.records import Size
from holdfast.model.identity import CheckpointId, ImageId
from holdfast.model.image import ImageRecord
from holdfast.model.manifest import Chunk, Manifest, TensorRecord

MAX_MANIFEST_BYTES = 256 * 2**20

_LINE = re.compile(rb"holdfast-manifest (0|[1-9][0-9]{0,8}) ([0-9a-f]{16}) (0|[1-9][0-9]{0,17})\n")
_MAX_LINE_BYTES = 80
_CRC = re.compile("[0-9a-f]{16}")


class _Images(msgspec.Struct, forbid_unknown_fields=True):
    """Columns, one item per image. `step` is that of the image: an older one where it is shared."""

    rank: list[Size]
    image: list[Size]
    step: list[Size]
    size_bytes: list[Size]
    crc64nvme: list[str]


_ChunkJson = int | tuple[Size, tuple[Size, ...], tuple[Size, ...]]
"""The number of its image alone, if it is the whole tensor; else image, offsets and lengths.

A bare `int` on purpose: msgspec 0.22 reads out of bounds where one union has a constrained int and a tuple of fixed
length (`Size | tuple[int, int]`)."""


class _Tensors(msgspec.Struct, forbid_unknown_fields=True):
    """Columns, one item per tensor; the last two by position in the columns, only where there is something to say."""

    fqn: list[str]
    dtype: list[str]
    shape: list[tuple[Size, ...]]
    chunks: list[list[_ChunkJson]]
    owner_rank: dict[str, Size]
    alias_of: dict[str, str]


class _Body(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    run: str
    attempt: Size
    step: Size
    world_size: Size
    structure: str
    images: _Images
    tensors: _Tensors
    plain: str | None
    notes: NotesRecord | None = None


# Writing -------------------------------------------------------------------------------------------------------------
def encode(manifest: Manifest) -> bytes:
    """The bytes of a manifest: the same for equal manifests, always."""
    try:
        body = msgspec.json.encode(_to_body(manifest))
    except UnicodeEncodeError as e:
        raise UsageError(f"a name is not valid text: {e.object[:80]!r}") from None
    data = b"holdfast-manifest 0 %016x %d\n" % (crc64nvme(body), len(body)) + body
    if len(data) > MAX_MANIFEST_BYTES:
        raise UsageError(f"a manifest of {len(data)} bytes passes the limit of {MAX_MANIFEST_BYTES}")
    return data


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
            shape=[t.shape for t in tensors],
            chunks=[[_chunk_to_json(c, t.shape) for c in t.chunks] for t in tensors],
            owner_rank={str(n): t.owner_rank for n, t in enumerate(tensors) if t.owner_rank is not None},
            alias_of={str(n): t.alias_of for n, t in enumerate(tensors) if t.alias_of is not None},
        ),
        plain=None if manifest.plain is None else base64.b64encode(manifest.plain).decode(),
        notes=None if manifest.notes is None else to_record(manifest.notes),
    )


def _chunk_to_json(chunk: Chunk, shape: tuple[int, ...]) -> _ChunkJson:
    return chunk.image if chunk.lengths == shape else (chunk.image, chunk.offsets, chunk.lengths)


# Reading -------------------------------------------------------------------------------------------------------------
def decode(data: Buffer) -> Manifest:
    """The manifest these bytes are.

    Raises:
        CorruptError: they are none, or contradict themselves, or do not cover every tensor.
        FormatVersionError: a newer Holdfast wrote them.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise CorruptError(f"a manifest of {len(data)} bytes passes the limit of {MAX_MANIFEST_BYTES}")
    whole = bytes(data)
    body = _proven_body(whole)
    try:
        manifest = _from_body(msgspec.json.decode(body, type=_Body))
    except (msgspec.MsgspecError, ValueError, RecursionError) as e:
        raise CorruptError(f"the manifest is not what Holdfast writes: {str(e)[:200]}") from None
    # One comparison for all that could be written in two ways: order of keys, spaces, a whole tensor spelt out.
    if encode(manifest) != whole:
        raise CorruptError("the manifest is not in canonical form")
    check_coverage(manifest.tensors)
    return manifest


def _proven_body(whole: bytes) -> bytes:
    line = _LINE.match(whole[:_MAX_LINE_BYTES])
    if line is None:
        raise CorruptError("the bytes do not begin as a manifest does")
    if int(line[1]) != 0:
        raise FormatVersionError(f"the manifest has version {int(line[1])}, this Holdfast reads 0")
    body = whole[line.end() :]
    if len(body) != int(line[3]) or crc64nvme(body) != int(line[2], 16):
        raise CorruptError("the manifest does not match its length and checksum")
    return body


def _from_body(body: _Body) -> Manifest:
    possible = body.attempt <= MAX_ATTEMPT and body.step <= MAX_STEP and 0 < body.world_size <= MAX_RANK + 1
    if not possible or not is_name(body.run) or not is_structure(body.structure):
        raise CorruptError("the manifest names an impossible run or number")
    return Manifest(
        format_version=0,
        run=body.run,
        id=CheckpointId(body.attempt, body.step),
        world_size=body.world_size,
        structure=body.structure,
        images=_images(body),
        tensors=_tensors(body.tensors, len(body.images.rank), body.world_size),
        plain=_plain(body.plain),
        notes=None if body.notes is None else from_record(body.notes),
    )


def _images(body: _Body) -> tuple[ImageRecord, ...]:
    columns = body.images
    lists = (columns.rank, columns.image, columns.step, columns.size_bytes, columns.crc64nvme)
    if len({len(c) for c in lists}) != 1:
        raise CorruptError("the columns of images differ in length")
    found = []
    for rank, image, step, size, crc in zip(*lists, strict=True):
        if rank >= body.world_size or image > MAX_IMAGE or step > body.step or not 0 < size <= MAX_BYTES:
            raise CorruptError(f"image {image} of rank {rank} has impossible numbers")
        if not _CRC.fullmatch(crc):
            raise CorruptError(f"image {image} of rank {rank} has no checksum")
        found.append(ImageRecord(ImageId(body.attempt, step, rank, image), size, int(crc, 16)))
    places = [(r.id.rank, r.id.image) for r in found]
    if any(a >= b for a, b in pairwise(places)):
        raise CorruptError("images are out of order or named twice")
    if len({r.id.rank for r in found if r.id.step == body.step}) != body.world_size:
        raise CorruptError("a rank has no image of this step")
    return tuple(found)


def _tensors(columns: _Tensors, image_count: int, world_size: int) -> tuple[TensorRecord, ...]:
    lists = (columns.fqn, columns.dtype, columns.shape, columns.chunks)
    if len({len(c) for c in lists}) != 1:
        raise CorruptError("the columns of tensors differ in length")
    found = []
    for n, (fqn, dtype, shape, items) in enumerate(zip(*lists, strict=True)):
        owner = columns.owner_rank.get(str(n))
        if not is_tensor_name(fqn) or not is_dtype(dtype) or len(shape) > MAX_DIMS:
            raise CorruptError(f"{fqn[:80]!r}, a {dtype[:40]!r} of {len(shape)} dimensions, is no tensor")
        if owner is not None and owner >= world_size:
            raise CorruptError(f"{fqn[:80]!r} belongs to rank {owner} of {world_size}")
        chunks = tuple([_chunk(item, shape, image_count, fqn) for item in items])
        if len(chunks) > 1 and chunks != in_order(chunks):
            raise CorruptError(f"the chunks of {fqn[:80]!r} are out of order")
        found.append(TensorRecord(fqn, shape, dtype, chunks, owner, columns.alias_of.get(str(n))))
    if any(a >= b for a, b in pairwise([by_name(t) for t in found])):
        raise CorruptError("tensors are out of order or named twice")
    check_names(found)
    _check_aliases(found)
    return tuple(found)


def _check_aliases(tensors: Sequence[TensorRecord]) -> None:
    real = {t.fqn: t for t in tensors if t.alias_of is None and t.owner_rank is None}
    for tensor in tensors:
        if tensor.alias_of is None:
            continue
        target = real.get(tensor.alias_of)
        if tensor.chunks or tensor.owner_rank is not None or target is None:
            raise CorruptError(f"{tensor.fqn[:80]!r} is no possible alias")
        if (target.shape, target.dtype) != (tensor.shape, tensor.dtype):
            raise CorruptError(f"{tensor.fqn[:80]!r} differs from the tensor it is an alias of")


def _chunk(item: _ChunkJson, shape: tuple[int, ...], image_count: int, fqn: str) -> Chunk:
    image, offsets, lengths = (item, (0,) * len(shape), shape) if isinstance(item, int) else item
    inside = len(offsets) == len(lengths) == len(shape) and all(
        [o + n <= s for o, n, s in zip(offsets, lengths, shape, strict=True)]
    )
    if not 0 <= image < image_count or not inside:
        raise CorruptError(f"a chunk of {fqn[:80]!r} lies outside of it, or in no image")
    return Chunk(image, offsets, lengths)


def _plain(text: str | None) -> bytes | None:
    if text is None:
        return None
    plain = base64.b64decode(text, validate=True)
    if len(plain) > MAX_INLINE_PLAIN_BYTES:
        raise CorruptError("the plain values of the manifest are too long to stand inline")
    return plain
