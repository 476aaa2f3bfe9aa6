"""Commit and catalog: a manifest appears only when all is there, and the catalog tells what is."""

import pytest
from tests.unit.store_fixtures import (
    begin,
    commit_images,
    entry,
    make,
    make_image,
    newest,
    put_image,
    save,
    spoil,
    upload,
)

from holdfast.errors import (
    CorruptError,
    FormatVersionError,
    NotFoundError,
    SupersededError,
    TierUnavailableError,
)
from holdfast.format import attempt as claims
from holdfast.format import manifest as codec
from holdfast.format import names
from holdfast.model.identity import CheckpointId, ImageId
from holdfast.store.catalog import is_tombstoned, read_catalog, read_manifest
from holdfast.store.commit import publish_manifest
from holdfast.store.quarantine import quarantine, quarantined, release, why_quarantined
from holdfast.tiers.contract import read_all
from holdfast.tiers.memory import HeapSlots, MemoryTier
from holdfast.tiers.wrappers import Fault, Faults, LoseAnswer, Raise, Retry, RetryPolicy


@pytest.fixture
def tier():
    tier = MemoryTier(HeapSlots(), name="home")
    begin(tier)
    return tier


ID = CheckpointId(1, 100)
KEY = names.manifest_key(ID)


# Commit ---------------------------------------------------------------------------------------------------------------
def test_commit_publishes_the_manifest_of_the_images(tier):
    checkpoint = make(1, 100)
    upload(tier, checkpoint)
    manifest = commit_images(tier, checkpoint)
    assert codec.decode(read_all(tier, KEY)) == manifest
    assert manifest.id == ID
    assert list(manifest.images) == checkpoint.records
    assert manifest.plain == checkpoint.plain


def test_images_are_settled_before_the_manifest_is_put(tier):
    checkpoint = make(1, 100)
    upload(tier, checkpoint)
    order = []

    class Log(Faults):
        def around(self, operation, key, call, buffer=None):
            order.append((operation, key))
            return super().around(operation, key, call, buffer)

    commit_images(Log(tier), checkpoint, authority=tier)
    assert order.index(("settle", names.step_prefix(ID))) < order.index(("list", names.step_prefix(ID)))
    assert order.index(("list", names.step_prefix(ID))) < order.index(("put", KEY))


def test_committing_twice_is_once(tier):
    checkpoint = save(tier, 1, 100)
    before = read_all(tier, KEY)
    commit_images(tier, checkpoint)
    assert read_all(tier, KEY) == before


def test_a_lost_answer_is_settled_by_equal_bytes(tier):
    checkpoint = make(1, 100)
    upload(tier, checkpoint)
    lost = Faults(tier, Fault("put", LoseAnswer()))
    commit_images(Retry(lost, RetryPolicy(base_s=0)), checkpoint)
    assert lost.faults[0].fired == 1
    assert newest(tier) == ID


def test_another_manifest_under_the_key_is_never_success(tier):
    other = make(1, 100, seed=1)
    upload(tier, other)
    spoil(tier, KEY, codec.encode(codec.build(make(1, 100).headers, make(1, 100).records, None)))
    with pytest.raises(CorruptError, match="another manifest") as e:
        commit_images(tier, other)
    assert (e.value.tier, e.value.key, e.value.step) == ("home", KEY, 100)


@pytest.mark.parametrize("rank", [0, 1])
def test_an_image_that_is_not_there_stops_the_commit(tier, rank):
    checkpoint = make(1, 100)
    upload(tier, checkpoint)
    tier.delete(checkpoint.images[rank].key)
    with pytest.raises(CorruptError, match="not there") as e:
        commit_images(tier, checkpoint)
    assert e.value.key == checkpoint.images[rank].key
    assert list(tier.list(names.MANIFESTS)) == []


def test_a_short_image_stops_the_commit(tier):
    checkpoint = make(1, 100)
    upload(tier, checkpoint)
    spoil(tier, checkpoint.images[1].key, checkpoint.images[1].data[:-1])
    with pytest.raises(CorruptError, match="has 16383 bytes"):
        commit_images(tier, checkpoint)
    assert list(tier.list(names.MANIFESTS)) == []


def test_a_quarantined_image_stops_the_commit(tier):
    checkpoint = make(1, 100)
    upload(tier, checkpoint)
    quarantine(tier, checkpoint.records[0].id, "a bit")
    with pytest.raises(CorruptError, match="quarantine"):
        commit_images(tier, checkpoint)


def test_images_that_do_not_cover_a_tensor_stop_the_commit(tier):
    checkpoint = make(1, 100)
    upload(tier, checkpoint)
    del checkpoint.images[1]
    with pytest.raises(CorruptError):
        commit_images(tier, checkpoint)


def test_on_a_node_only_the_nodes_images_have_to_be_there(tier):
    checkpoint = make(1, 100)
    put_image(tier, checkpoint.images[1])
    manifest = codec.build(checkpoint.headers, checkpoint.records, checkpoint.plain)
    publish_manifest(tier, tier, manifest, owner=1, calls_for=lambda i: i.rank == 1)
    assert entry(tier, ID, calls_for=lambda i: i.rank == 1).loadable
    assert entry(tier, ID).missing == (ImageId(1, 100, 0),)


def test_an_image_of_an_older_step_may_be_shared(tier):
    frozen = make_image(ImageId(1, 50, 0, 1), world_size=1, image_count=2)
    put_image(tier, frozen)
    image = make_image(ImageId(1, 100, 0), world_size=1, image_count=2, relies_on=(frozen.record.id,))
    put_image(tier, image)
    checkpoint = make(1, 100, world_size=1)
    checkpoint.images = [image, frozen]
    commit_images(tier, checkpoint)
    assert entry(tier, ID).loadable
    tier.delete(frozen.key)
    assert entry(tier, ID).missing == (frozen.record.id,)


def test_a_superseded_owner_commits_nothing(tier):
    checkpoint = make(1, 100)
    upload(tier, checkpoint)
    begin(tier, CheckpointId(1, 50))
    with pytest.raises(SupersededError):
        commit_images(tier, checkpoint, owner=1)
    with pytest.raises(SupersededError, match="abandoned"):
        commit_images(tier, checkpoint, owner=2)
    assert list(tier.list(names.MANIFESTS)) == []


def test_the_new_owner_commits_what_it_stands_on(tier):
    checkpoint = make(1, 100)
    upload(tier, checkpoint)
    begin(tier, ID)
    commit_images(tier, checkpoint, owner=2)
    assert newest(tier) == ID


def test_a_step_being_deleted_is_not_committed(tier):
    checkpoint = make(1, 100)
    upload(tier, checkpoint)
    tier.put(names.tombstone_key(ID), memoryview(b"even a damaged one"))
    with pytest.raises(NotFoundError, match="being deleted"):
        commit_images(tier, checkpoint)
    assert list(tier.list(names.MANIFESTS)) == []


def test_a_deletion_that_begins_during_the_commit_wins(tier):
    checkpoint = make(1, 100)
    upload(tier, checkpoint)

    class Late(Faults):
        def put(self, key, buffer, *, if_absent=False):
            super().put(key, buffer, if_absent=if_absent)
            tier.put(names.tombstone_key(ID), memoryview(claims.encode_tombstone(ID)))

    with pytest.raises(NotFoundError):
        commit_images(Late(tier), checkpoint, authority=tier)
    assert list(tier.list(names.MANIFESTS)) == []


def test_a_tier_that_does_not_answer_is_not_a_tombstone(tier):
    with pytest.raises(TierUnavailableError):
        is_tombstoned(Faults(tier, Fault("size", Raise())), ID)


# Catalog --------------------------------------------------------------------------------------------------------------
def test_the_catalog_tells_committed_from_the_rest(tier):
    save(tier, 1, 100)
    upload(tier, make(1, 200))
    save(tier, 1, 300)
    tier.put(names.tombstone_key(CheckpointId(1, 300)), memoryview(claims.encode_tombstone(CheckpointId(1, 300))))
    tier.put(names.tombstone_key(CheckpointId(1, 50)), memoryview(claims.encode_tombstone(CheckpointId(1, 50))))
    catalog = read_catalog(tier)
    told = {e.id.step: (e.committed, e.loadable, e.tombstoned, len(e.images)) for e in catalog}
    assert told == {
        50: (False, False, True, 0),
        100: (True, True, False, 2),
        200: (False, False, False, 2),
        300: (False, False, True, 2),
    }
    assert [e.id for e in catalog.committed] == [ID]
    assert catalog.highest_attempt == 1
    assert entry(tier, ID).size_bytes == sum(i.record.size_bytes for i in make(1, 100).images)


def test_the_newest_is_by_attempt_and_on_the_lineage(tier):
    for step in (50, 100):
        save(tier, 1, step)
    begin(tier, CheckpointId(1, 50))
    assert newest(tier) == CheckpointId(1, 50)
    save(tier, 2, 70)
    assert newest(tier) == CheckpointId(2, 70)


def test_unknown_files_are_passed_over(tier):
    save(tier, 1, 100)
    before = read_catalog(tier)
    for key in ("README", "images/readme", "images/00000001/000000000100/core", "manifests/latest", "tombstones/x",
                "quarantine/x", "manifests/00000001-000000000100.bak", "images/1/2/3-4.safetensors"):  # fmt: skip
        tier.put(key, memoryview(b"foreign"))
    assert read_catalog(tier) == before


@pytest.mark.parametrize("spoiled", [b"", b"random bytes", bytes(5000)])
def test_a_manifest_that_is_none_is_a_problem_not_a_crash(tier, spoiled):
    save(tier, 1, 50)
    save(tier, 1, 100)
    spoil(tier, KEY, spoiled)
    found = entry(tier, ID)
    assert isinstance(found.problem, CorruptError)
    assert (found.problem.tier, found.problem.key, found.problem.step) == ("home", KEY, 100)
    assert (found.committed, found.loadable) == (True, False)
    assert newest(tier) == CheckpointId(1, 50)


def test_a_manifest_truncated_or_flipped_anywhere_is_a_problem(tier):
    save(tier, 1, 100)
    good = bytes(read_all(tier, KEY))
    for n in range(len(good)):
        spoil(tier, KEY, good[:n])
        assert entry(tier, ID).problem is not None
        flipped = bytearray(good)
        flipped[n] ^= 1 << n % 8
        spoil(tier, KEY, flipped)
        assert entry(tier, ID).problem is not None


def test_a_manifest_under_another_key_is_a_problem(tier):
    save(tier, 1, 100)
    spoil(tier, names.manifest_key(CheckpointId(1, 101)), read_all(tier, KEY))
    with pytest.raises(CorruptError, match=r"step 100"):
        read_manifest(tier, CheckpointId(1, 101))


def test_a_manifest_of_a_newer_holdfast_is_told_as_such(tier):
    save(tier, 1, 100)
    spoil(tier, KEY, read_all(tier, KEY).replace(b"holdfast-manifest 0", b"holdfast-manifest 1"))
    assert isinstance(entry(tier, ID).problem, FormatVersionError)


# Quarantine -----------------------------------------------------------------------------------------------------------
def test_a_quarantined_image_is_not_loaded_from_here(tier):
    save(tier, 1, 50)
    checkpoint = save(tier, 1, 100)
    image = checkpoint.records[1].id
    quarantine(tier, image, "block 0")
    quarantine(tier, image, "block 0 again")
    assert quarantined(tier) == {image}
    assert why_quarantined(tier, image) == "block 0 again"
    assert entry(tier, ID).bad == (image,)
    assert newest(tier) == CheckpointId(1, 50)
    assert read_all(tier, checkpoint.images[1].key) == checkpoint.images[1].data
    release(tier, image)
    release(tier, image)
    assert entry(tier, ID).loadable


def test_a_damaged_quarantine_record_still_keeps_readers_away(tier):
    checkpoint = save(tier, 1, 100)
    image = checkpoint.records[0].id
    tier.put(f"quarantine/{checkpoint.images[0].key}", memoryview(b"\xff"))
    assert quarantined(tier) == {image}
    assert "damaged" in why_quarantined(tier, image)
