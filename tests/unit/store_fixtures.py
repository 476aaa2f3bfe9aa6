"""Checkpoints small enough to make by the dozen, for tests of the store."""

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from holdfast.format import image as images
from holdfast.format import names
from holdfast.format.plain import encode
from holdfast.model.identity import CheckpointId, ImageId
from holdfast.model.image import ImageHeader, ImageRecord, Piece
from holdfast.model.manifest import Manifest
from holdfast.store.attempts import claim, read_attempts
from holdfast.store.catalog import CatalogEntry, read_catalog
from holdfast.store.commit import commit
from holdfast.tiers.contract import Tier, read_all

OWNER = 1


@dataclass
class Image:
    header: ImageHeader
    record: ImageRecord
    data: bytearray

    @property
    def key(self) -> str:
        return names.image_key(self.record.id)


@dataclass
class Checkpoint:
    id: CheckpointId
    images: list[Image]
    plain: bytes

    @property
    def headers(self) -> list[ImageHeader]:
        return [i.header for i in self.images]

    @property
    def records(self) -> list[ImageRecord]:
        return [i.record for i in self.images]


def make_image(
    image: ImageId,
    *,
    world_size: int = 2,
    image_count: int = 1,
    elements: int = 100,
    relies_on: tuple[ImageId, ...] = (),
    plain: bytes = b"",
    seed: int = 0,
) -> Image:
    name = "weight" if image.image == 0 else f"frozen{image.image}"
    pieces = [Piece(name, (image.rank * elements,), (elements,), (world_size * elements,), "uint8", 1)]
    template = images.lay_out(
        pieces, (), run="r", rank=image.rank, world_size=world_size, image=image.image, image_count=image_count,
        structure="00", relies_on=relies_on, plain_bytes=len(plain),
    )  # fmt: skip
    layout = template.layout
    data = bytearray(layout.size_bytes)
    template.stamp(data, image.attempt, image.step)
    entry = layout.entries[0]
    data[entry.start : entry.stop] = random.Random(f"{image} {seed}").randbytes(elements)
    images.write_plain(data, layout, plain)
    crc = images.seal(data, layout)
    return Image(images.parse_header(data, len(data)), ImageRecord(image, len(data), crc), data)


def make(attempt: int, step: int, *, world_size: int = 2, elements: int = 100, seed: int = 0) -> Checkpoint:
    plain = encode({"step": step})
    made = [
        make_image(
            ImageId(attempt, step, rank),
            world_size=world_size,
            elements=elements,
            plain=plain if rank == 0 else b"",
            seed=seed,
        )
        for rank in range(world_size)
    ]
    return Checkpoint(CheckpointId(attempt, step), made, plain)


def make_sharing(attempt: int, step: int, shared: list[Image] | None, *, seed: int = 0) -> Checkpoint:
    """A step whose ranks have a second image each: of their own, or (`shared`) of an older step."""
    plain = encode({"step": step})
    second = shared or [make_image(ImageId(attempt, step, r, 1), image_count=2, seed=seed) for r in range(2)]
    first = [
        make_image(
            ImageId(attempt, step, rank),
            image_count=2,
            relies_on=() if shared is None else (shared[rank].record.id,),
            plain=b"" if rank else plain,
            seed=seed,
        )
        for rank in range(2)
    ]
    return Checkpoint(CheckpointId(attempt, step), [*second, *first], plain)


def upload(tier: Tier, checkpoint: Checkpoint) -> None:
    there = set(keys(tier))
    for image in checkpoint.images:
        if image.record.id.checkpoint == checkpoint.id or image.key not in there:
            put_image(tier, image)


def put_image(tier: Tier, image: Image) -> None:
    handle = tier.upload(image.key, len(image.data))
    handle.write(0, memoryview(image.data))
    handle.publish()


def commit_images(
    tier: Tier, checkpoint: Checkpoint, *, owner: int | None = None, authority: Tier | None = None
) -> Manifest:
    return commit(
        tier,
        authority or tier,
        owner=checkpoint.id.attempt if owner is None else owner,
        headers=checkpoint.headers,
        records=checkpoint.records,
        plain=checkpoint.plain,
    )


def save(tier: Tier, attempt: int, step: int, *, owner: int | None = None) -> Checkpoint:
    checkpoint = make(attempt, step)
    upload(tier, checkpoint)
    commit_images(tier, checkpoint, owner=owner)
    return checkpoint


def begin(tier: Tier, parent: CheckpointId | None = None) -> int:
    return claim(tier, run="r", parent=parent, coordinator="here").attempt


def entry(tier: Tier, checkpoint: CheckpointId, **options: Any) -> CatalogEntry:
    found = read_catalog(tier, **options).get(checkpoint)
    assert found is not None
    return found


def newest(tier: Tier) -> CheckpointId | None:
    found = read_catalog(tier).newest(read_attempts([tier]).lineage)
    return found.id if found else None


def keys(tier: Tier) -> list[str]:
    return [i.key for i in tier.list("")]


def spoil(tier: Tier, key: str, data: bytes | bytearray) -> None:
    """Other bytes under a key, as a failing disk would have it."""
    tier.put(key, memoryview(bytes(data)))


def flip(tier: Tier, key: str, bit: int) -> None:
    data = read_all(tier, key)
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    spoil(tier, key, data)


def pool(workers: int = 4) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="test")
