"""Checkpoints whose tensors are given as arrays, and who holds what of them as rectangles."""

from typing import Any

import numpy as np

from holdfast.format import names
from holdfast.format.image import lay_out, parse_header, seal, write_plain
from holdfast.format.plain import encode
from holdfast.model.identity import ImageId
from holdfast.model.image import ImageRecord, Piece
from holdfast.model.manifest import Manifest
from holdfast.store.commit import commit
from holdfast.store.tensors import Images, StoredTensor, stored_tensor
from holdfast.tiers.contract import Tier


def save(tier: Tier, step: int, ranks: Any, **options: Any) -> Manifest:
    """A checkpoint whose rank r holds, of each tensor, these rectangles of the whole that is given."""
    dtype, attempt = options.get("dtype", "float32"), options.get("attempt", 1)
    plain = [encode(value) for value in options.get("plain", [{}] * len(ranks))]
    headers, records = [], []
    for rank, held in enumerate(ranks):
        pieces, values = [], []
        for fqn, (whole, rects) in held.items():
            for offsets, lengths in rects:
                pieces.append(Piece(fqn, offsets, lengths, whole.shape, dtype, whole.itemsize))
                values.append(whole[tuple(slice(o, o + n) for o, n in zip(offsets, lengths, strict=True))])
        template = lay_out(
            pieces, (), run="r", rank=rank, world_size=len(ranks), structure="00", plain_bytes=len(plain[rank])
        )
        data = bytearray(template.layout.size_bytes)
        template.stamp(data, attempt, step)
        for entry, value in zip(template.layout.entries, values, strict=True):
            data[entry.start : entry.stop] = np.ascontiguousarray(value).tobytes()
        write_plain(data, template.layout, plain[rank])
        crc = seal(data, template.layout)
        upload = tier.upload(names.image_key(ImageId(attempt, step, rank)), len(data))
        upload.write(0, memoryview(data))
        upload.publish()
        headers.append(parse_header(data, len(data)))
        records.append(ImageRecord(headers[-1].id, len(data), crc))
    return commit(tier, tier, owner=attempt, headers=headers, records=records, plain=plain[0])


def rows(whole: np.ndarray, ranks: int) -> list[Any]:
    size, rest = whole.shape[0] // ranks, whole.shape[1:]
    return [[((r * size, *(0,) * len(rest)), (size, *rest))] for r in range(ranks)]


def find_tensor(images: Images, manifest: Manifest, fqn: str) -> StoredTensor:
    return stored_tensor(images, manifest, next(t for t in manifest.tensors if t.fqn == fqn))
