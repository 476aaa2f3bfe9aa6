"""Memory looked at from outside: what stands whole in slots, and what is no longer there when it is read."""

from pathlib import Path

import pytest
from tests.unit.store_fixtures import Image, make
from tests.unit.tensor_fixtures import find_tensor

from holdfast.errors import CorruptError, NotFoundError, UsageError
from holdfast.format import names
from holdfast.model.identity import CheckpointId
from holdfast.store.catalog import read_catalog, read_manifest
from holdfast.store.tensors import Images
from holdfast.wire.pages import PAGE_BYTES, SlotPage, SlotState
from holdfast.wire.slot_tier import SlotTier

STEP = CheckpointId(1, 10)


def put(arena: Path, number: int, image: Image, state: SlotState = SlotState.HELD) -> Path:
    data = memoryview(bytearray(PAGE_BYTES + len(image.data) + 4096))
    page = SlotPage(data)
    page.initialise()
    page.state, page.generation = state, 5
    page.attempt, page.step, page.rank, page.image = 1, image.record.id.step, image.record.id.rank, 0
    page.image_bytes, page.crc64nvme = image.record.size_bytes, image.record.crc64nvme
    data[PAGE_BYTES : PAGE_BYTES + len(image.data)] = image.data
    path = arena / f"slot-{number:05d}"
    path.write_bytes(data)
    return path


def test_a_step_all_of_whose_images_are_here_has_a_manifest(tmp_path):
    saved = make(1, 10)
    for number, image in enumerate(saved.images):
        put(tmp_path, number, image)
    tier = SlotTier(tmp_path)
    [entry] = read_catalog(tier)
    assert (entry.id, entry.loadable) == (STEP, True)
    manifest = read_manifest(tier, STEP)
    assert (manifest.images, manifest.plain) == (tuple(saved.records), saved.plain)
    values = b"".join(p.tobytes() for p in find_tensor(Images(tier), manifest, "weight").parts())
    assert values == b"".join(bytes(i.data[e.start : e.stop]) for i in saved.images for e in i.header.layout.entries)


@pytest.mark.parametrize("state", [SlotState.FREE, SlotState.FILLING, SlotState.STAGED])
def test_what_is_not_held_and_what_others_hold_makes_no_step(tmp_path, state):
    first, second = make(1, 10).images
    put(tmp_path, 0, first)
    put(tmp_path, 1, second, state)
    (tmp_path / "slot-00002").write_bytes(b"noise")
    [entry] = read_catalog(SlotTier(tmp_path))
    assert not entry.committed


def test_a_slot_that_was_reused_while_it_is_read_is_not_there_any_more(tmp_path):
    [image] = make(1, 10, world_size=1).images
    path = put(tmp_path, 0, image)
    tier = SlotTier(tmp_path)
    data = bytearray(path.read_bytes())
    SlotPage(memoryview(data)).generation += 1
    path.write_bytes(data)
    with pytest.raises(NotFoundError, match="has left memory meanwhile"):
        tier.read_into(image.key, 0, memoryview(bytearray(10)))
    path.unlink()
    with pytest.raises(NotFoundError, match="has left memory meanwhile"):
        tier.read_into(image.key, 0, memoryview(bytearray(10)))


def test_plain_values_that_are_written_over_while_they_are_read_make_no_step(tmp_path):
    [image] = make(1, 10, world_size=1).images
    path, at = put(tmp_path, 0, image), PAGE_BYTES + image.header.layout.plain_start
    data = bytearray(path.read_bytes())
    data[at : at + 8] = b"\xff" * 8  # their length
    path.write_bytes(data)
    [entry] = read_catalog(SlotTier(tmp_path))
    assert not entry.committed


def test_a_flipped_bit_in_memory_is_found(tmp_path):
    [image] = make(1, 10, world_size=1).images
    path = put(tmp_path, 0, image)
    tier = SlotTier(tmp_path)
    manifest = read_manifest(tier, STEP)
    data = bytearray(path.read_bytes())
    data[PAGE_BYTES + image.header.layout.entries[0].start] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptError) as caught:
        list(find_tensor(Images(tier), manifest, "weight").parts())
    assert (caught.value.tier, caught.value.key) == ("memory", image.key)


def test_nothing_is_written(tmp_path):
    tier = SlotTier(tmp_path)
    for write in (lambda: tier.put("x", memoryview(b"")), lambda: tier.upload("x", 1), lambda: tier.delete("x")):
        with pytest.raises(UsageError):
            write()
    with pytest.raises(NotFoundError):
        tier.size(names.manifest_key(STEP))
