"""Repair: a bad copy becomes the good one again, or stays what it was, and nobody reads it meanwhile."""

from contextlib import suppress

import pytest
from tests.unit.store_fixtures import (
    Checkpoint,
    begin,
    commit_images,
    entry,
    flip,
    make,
    make_image,
    pool,
    save,
    spoil,
    upload,
)

from holdfast.errors import CorruptError, NotFoundError, TierFullError
from holdfast.format import manifest as codec
from holdfast.format import names
from holdfast.format.checksum import BLOCK_BYTES
from holdfast.model.identity import ImageId
from holdfast.store.attempts import read_attempts
from holdfast.store.catalog import read_catalog
from holdfast.store.flush import Source
from holdfast.store.prune import _delete, plan_delete
from holdfast.store.quarantine import quarantine, quarantined
from holdfast.store.repair import flush_or_repair, repair_image, repair_image_from_memory, repair_manifest
from holdfast.store.verify import verify_checkpoint, verify_image
from holdfast.tiers.contract import read_all
from holdfast.tiers.memory import HeapSlots, MemoryTier
from holdfast.tiers.wrappers import Fault, Faults, FlipBit, Raise


@pytest.fixture
def near():
    return Faults(MemoryTier(HeapSlots(), name="near"))


@pytest.fixture
def far():
    return Faults(MemoryTier(HeapSlots(), name="far"))


@pytest.fixture
def saved(near, far):
    """One checkpoint of two images on both tiers."""
    for tier in (near, far):
        begin(tier)
        made = save(tier, 1, 10)
    return made


@pytest.fixture
def workers():
    with pool() as p:
        yield p


def repair(tier, saved, *sources, rank=0):
    return repair_image(tier, saved.images[rank].record, sources, checkpoint=saved.id, reason="a test")


def test_a_bad_image_is_re_made_from_another_tier(near, far, saved):
    image = saved.images[0]
    for harm in (
        lambda: flip(near, image.key, 8 * 5000),
        lambda: spoil(near, image.key, b"short"),
        lambda: near.delete(image.key),
        lambda: quarantine(near, image.record.id, "found bad"),
    ):
        harm()
        assert repair(near, saved, far) == "far"
        assert read_all(near, image.key) == image.data
        assert quarantined(near) == frozenset()
        assert entry(near, saved.id).loadable


def test_it_is_kept_from_readers_while_it_is_re_made(near, far, saved):
    flip(near, saved.images[0].key, 77)
    seen = []

    class Look(FlipBit):
        def before(self, buffer):
            seen.append((entry(near, saved.id).loadable, quarantined(near)))

        def after(self, buffer):
            """Flip nothing."""

    near.add(Fault("publish", Look()))
    repair(near, saved, far)
    assert seen == [(False, frozenset({saved.images[0].record.id}))]


def test_the_next_source_is_tried_and_a_bad_one_writes_nothing(near, far, saved):
    third = MemoryTier(HeapSlots(), name="third")
    begin(third)
    save(third, 1, 10)
    key = saved.images[0].key
    flip(near, key, 77)
    bad = read_all(near, key)
    for harm in (lambda: flip(far, key, 8 * 4500), lambda: spoil(far, key, b"short"), lambda: far.delete(key)):
        harm()
        with pytest.raises(CorruptError, match=r"no good copy to repair .*far: ") as e:
            repair(near, saved, far)
        assert "--from" in e.value.hint
        assert read_all(near, key) == bad
        assert quarantined(near) == {saved.images[0].record.id}, "it is bad: nobody has to find that out again"
    assert repair(near, saved, far, third) == "third"
    assert entry(near, saved.id).loadable


def test_a_bit_that_flips_on_the_way_is_not_written(near, far, saved):
    key = saved.images[0].key
    near.delete(key)
    for n in range(4):
        far.clear()
        flips = far.add(Fault("read_into", FlipBit(8 * 40), after=n))
        with pytest.raises(CorruptError):
            repair(near, saved, far)
        assert flips.fired
        with pytest.raises(NotFoundError):
            near.size(key)


def test_what_was_written_is_read_back(near, far, saved):
    key = saved.images[0].key
    flip(near, key, 77)
    rots = near.add(Fault("read_into", FlipBit(8 * 5000), key="images", after=1))
    with pytest.raises(CorruptError):
        repair(near, saved, far)
    assert rots.fired
    assert quarantined(near) == {saved.images[0].record.id}


@pytest.mark.parametrize("operation", ["upload", "write", "publish"])
def test_a_tier_that_takes_nothing_keeps_the_record(near, far, saved, operation):
    flip(near, saved.images[0].key, 77)
    near.add(Fault(operation, Raise(TierFullError("injected", tier="near")), key="^images"))
    with pytest.raises(TierFullError):
        repair(near, saved, far)
    assert quarantined(near) == {saved.images[0].record.id}
    near.clear()
    repair(near, saved, far)
    assert entry(near, saved.id).loadable


def test_killed_at_any_point_a_bad_copy_is_read_by_nobody_and_repaired_the_next_time(near, far, saved):
    """Every call on the tier in turn is the last one of a process."""

    class Killed(BaseException):
        pass

    key = saved.images[0].key
    for n in range(100):
        flip(near, key, 8 * 4500)
        bad = read_all(near, key)
        near.calls.clear()
        kill = near.add(Fault("put|upload|write|publish|read_into|size|delete", Raise(Killed()), after=n))
        with suppress(Killed):
            repair(near, saved, far)
        begun = "upload" in near.calls
        near.clear()
        now = read_all(near, key)
        assert now in (bad, saved.images[0].data), "one copy or the other, never of both"
        if begun and now == bad:
            assert not entry(near, saved.id).loadable
        repair(near, saved, far)
        assert entry(near, saved.id).loadable
        if not kill.fired:
            break
    assert 5 < n < 99


def test_what_is_deleted_is_not_brought_back(near, far, saved):
    later = save(near, 1, 20)
    plan = plan_delete(read_catalog(near), read_attempts([near]).lineage, [saved.id])
    _delete(near, plan.deletions[0], lambda image: False)
    with pytest.raises(NotFoundError, match="not committed there any more"):
        repair(near, saved, far)
    assert entry(near, later.id).loadable
    assert quarantined(near) == frozenset()


def test_from_memory(near, saved, workers):
    image = saved.images[1]
    flip(near, image.key, 8 * 4500)
    repair_image_from_memory(near, image.record, memoryview(image.data), workers, checkpoint=saved.id, reason="a test")
    assert read_all(near, image.key) == image.data
    assert quarantined(near) == frozenset()


def test_from_memory_too_nobody_reads_it_before_it_was_read_back(near, saved, workers):
    image = saved.images[1]
    flip(near, image.key, 8 * 4500)
    seen = []

    class Look(FlipBit):
        def after(self, buffer):
            seen.append(quarantined(near))

    near.add(Fault("read_into", Look(), key="^images", times=None))
    repair_image_from_memory(near, image.record, memoryview(image.data), workers, checkpoint=saved.id, reason="a test")
    assert set(seen) == {frozenset({image.record.id})}
    assert quarantined(near) == frozenset()


def test_a_large_image_in_parts(near, far):
    image = make_image(ImageId(1, 10, 0), world_size=1, elements=9 * BLOCK_BYTES + 12345)
    made = Checkpoint(image.record.id.checkpoint, [image], b"")
    for tier in (near, far):
        begin(tier)
        upload(tier, made)
        commit_images(tier, made)
    flip(near, image.key, 8 * 7 * BLOCK_BYTES)
    assert repair(near, made, far) == "far"
    assert read_all(near, image.key) == image.data


# Flushing over what stands there --------------------------------------------------------------------------------------
def flush(tier, image, workers):
    source = Source(image.record.id, memoryview(image.data), len(image.data), lambda: image.record)
    return flush_or_repair(tier, source, workers)


def test_a_flush_replaces_what_is_damaged(near, saved, workers):
    image = saved.images[0]
    for harm in (lambda: flip(near, image.key, 8 * 4500), lambda: spoil(near, image.key, b"short")):
        harm()
        assert flush(near, image, workers)
        assert verify_image(near, image.record.id, record=image.record).ok
        assert quarantined(near) == frozenset()
    assert not flush(near, image, workers), "what is good is proven, and left"


def test_a_flush_ends_the_quarantine_of_a_copy_that_is_good(near, saved, workers):
    """One that was killed after it had re-made the copy left the record, which no commit would pass."""
    image = saved.images[0]
    quarantine(near, image.record.id, "it was bad")
    assert not flush(near, image, workers)
    assert quarantined(near) == frozenset()


def test_a_flush_replaces_no_whole_image_of_somebody_else(near, saved, workers):
    other = make_image(saved.images[0].record.id, seed=5)
    with pytest.raises(CorruptError, match="other bytes stand"):
        flush(near, other, workers)
    flip(near, other.key, 8 * 4500)  # damaged, but the manifest says whose it is
    with pytest.raises(CorruptError, match="other bytes stand"):
        flush(near, other, workers)


def test_a_flush_whose_own_image_is_bad_touches_nothing(near, saved, workers):
    def sealed():
        raise CorruptError("the slot is bad")

    image = saved.images[0]
    flip(near, image.key, 8 * 4500)
    bad = read_all(near, image.key)
    with pytest.raises(CorruptError, match="the slot is bad"):
        flush_or_repair(near, Source(image.record.id, memoryview(image.data), len(image.data), sealed), workers)
    assert read_all(near, image.key) == bad


# Manifests ------------------------------------------------------------------------------------------------------------
def test_a_manifest_comes_from_another_tier_or_from_its_images(near, far, saved):
    key = names.manifest_key(saved.id)
    good = read_all(near, key)
    for sources, where in (([far], "far"), ([], "its images")):
        spoil(near, key, b"\0" * 50)
        assert repair_manifest(near, entry(near, saved.id), sources) == where
        assert read_all(near, key) == good
        assert all(v.ok for v in verify_checkpoint(near, codec.decode(read_all(near, key))))


def test_a_manifest_of_another_run_is_not_taken(near, far, saved):
    """Same attempt, same step, other bytes: whoever named that tier erred."""
    other = make(1, 10, seed=9)
    stranger = MemoryTier(HeapSlots(), name="stranger")
    begin(stranger)
    upload(stranger, other)
    commit_images(stranger, other)
    key = names.manifest_key(saved.id)
    good = read_all(near, key)
    spoil(near, key, b"")
    assert repair_manifest(near, entry(near, saved.id), [stranger]) == "its images"
    assert read_all(near, key) == good


class Then:
    """Something that happens right after a call."""

    def __init__(self, happens):
        self._happens = happens

    def before(self, buffer):
        """Nothing yet."""

    def after(self, buffer):
        self._happens()


def test_a_manifest_deleted_meanwhile_is_not_brought_back(near, far, saved):
    """While the images are read, or while it is put."""
    key, stone = names.manifest_key(saved.id), names.tombstone_key(saved.id)
    spoil(near, key, b"bad")
    found = entry(near, saved.id)
    near.add(Fault("read_into", Then(lambda: near.delete(key)), key="^images"))
    with pytest.raises(NotFoundError, match="not committed there any more"):
        repair_manifest(near, found, [])
    assert list(near.list(names.MANIFESTS)) == []
    spoil(near, key, b"bad")
    near.add(Fault("put", Then(lambda: spoil(near, stone, b"")), key="^manifests"))
    with pytest.raises(NotFoundError, match="not committed there any more"):
        repair_manifest(near, found, [far])
    assert list(near.list(names.MANIFESTS)) == []


def test_a_manifest_whose_images_are_bad_too_stays_as_it_is(near, saved):
    key = names.manifest_key(saved.id)
    spoil(near, key, b"bad")
    flip(near, saved.images[1].key, 8 * 4500)
    with pytest.raises(CorruptError):
        repair_manifest(near, entry(near, saved.id), [])
    assert read_all(near, key) == b"bad"
    for image in saved.images:
        near.delete(image.key)
    with pytest.raises(CorruptError, match="no image"):
        repair_manifest(near, entry(near, saved.id), [])
