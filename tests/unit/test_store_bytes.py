"""Flush, fetch and verify: the bytes that come back are the bytes that went, or it is said which are not."""

import threading
from dataclasses import replace

import pytest
from tests.unit.store_fixtures import (
    begin,
    commit_images,
    entry,
    flip,
    keys,
    make,
    make_image,
    make_sharing,
    pool,
    put_image,
    save,
    spoil,
    upload,
)

from holdfast.errors import CorruptError, FormatVersionError, NotFoundError, TierFullError, TierUnavailableError
from holdfast.format import names
from holdfast.format.checksum import BLOCK_BYTES
from holdfast.model.identity import CheckpointId, ImageId
from holdfast.store.blocks import aligned_buffer
from holdfast.store.catalog import read_manifest
from holdfast.store.fetch import fetch_image
from holdfast.store.flush import Source, flush_image, flush_while_sealed
from holdfast.store.parts import run_parts
from holdfast.store.verify import Proven, verify_checkpoint, verify_image
from holdfast.tiers.contract import read_all
from holdfast.tiers.memory import HeapSlots, MemoryTier
from holdfast.tiers.posix import PosixTier
from holdfast.tiers.wrappers import Fault, Faults, FlipBit, Hang, LoseAnswer, Raise, Retry, RetryPolicy

BIG = 5 * BLOCK_BYTES + 12345


@pytest.fixture
def tier():
    tier = MemoryTier(HeapSlots(), name="home")
    tier.capabilities = replace(tier.capabilities, part_bytes=2 * BLOCK_BYTES)
    return tier


@pytest.fixture(scope="module")
def big():
    return make_image(ImageId(1, 100, 0), world_size=1, elements=BIG)


@pytest.fixture
def workers():
    with pool() as p:
        yield p


def fetch(tier, image, workers):
    buffer = aligned_buffer(image.record.size_bytes)
    header = fetch_image(tier, image.record, buffer, workers)
    return header, buffer


# Flush ----------------------------------------------------------------------------------------------------------------
def test_an_image_is_flushed_by_parts(tier, big, workers):
    faults = Faults(tier)
    done: list[int] = []
    assert flush_image(faults, big.record, memoryview(big.data), workers, progress=done.append)
    assert read_all(tier, big.key) == big.data
    assert faults.calls["write"] == 3
    assert sum(done) == big.record.size_bytes


def test_an_image_is_flushed_while_it_is_sealed_its_table_last(tier, big, workers):
    start = big.header.layout.table_start
    buffer = bytearray(big.data[:start].ljust(len(big.data), b"?"))
    faults = Faults(tier)
    written: list[int] = []

    def sealed():
        written.append(faults.calls["write"])
        assert keys(tier) == [], "nothing appears before"
        buffer[start:] = big.data[start:]
        return big.record

    assert flush_while_sealed(faults, Source(big.record.id, memoryview(buffer), start, sealed), workers)
    assert written == [2], "all parts but the one with the table"
    assert read_all(tier, big.key) == big.data


def test_an_image_that_cannot_be_sealed_never_appears(tmp_path, big, workers):
    tier = PosixTier(str(tmp_path / "t"))

    def sealed():
        raise CorruptError("no image")

    with pytest.raises(CorruptError, match="no image"):
        flush_while_sealed(tier, Source(big.record.id, memoryview(big.data), 4096, sealed), workers)
    assert [p for p in (tmp_path / "t").rglob("*") if p.is_file()] == []


def test_flushing_again_reads_instead_of_writing(tier, big, workers):
    put_image(tier, big)
    faults = Faults(tier)
    assert not flush_image(faults, big.record, memoryview(big.data), workers)
    assert "write" not in faults.calls
    assert faults.calls["read_into"] > 1


def test_other_bytes_under_the_key_are_never_success(tier, big, workers):
    put_image(tier, big)
    flip(tier, big.key, 8 * BIG)
    with pytest.raises(CorruptError, match="other bytes") as e:
        flush_image(tier, big.record, memoryview(big.data), workers)
    assert (e.value.tier, e.value.key, e.value.step) == ("home", big.key, 100)


def test_a_good_copy_replaces_a_bad_one_when_asked(tier, big, workers):
    put_image(tier, big)
    flip(tier, big.key, 8 * BIG)
    assert flush_image(tier, big.record, memoryview(big.data), workers, replace=True)
    assert read_all(tier, big.key) == big.data
    assert keys(tier) == [big.key]


@pytest.mark.parametrize("error", [TierFullError("full"), TierUnavailableError("away"), KeyboardInterrupt()])
@pytest.mark.parametrize("operation", ["upload", "write", "publish"])
def test_a_failed_flush_leaves_nothing(tmp_path, big, workers, operation, error):
    tier = PosixTier(str(tmp_path / "t"))
    faults = Faults(tier, Fault(operation, Raise(error), after=1 if operation == "write" else 0))
    with pytest.raises(type(error)):
        flush_image(faults, big.record, memoryview(big.data), workers)
    assert faults.faults[0].fired == 1
    assert [p for p in (tmp_path / "t").rglob("*") if p.is_file()] == []


def test_a_lost_publish_is_proven(tier, big, workers):
    faults = Faults(tier, Fault("publish", LoseAnswer()))
    assert not flush_image(Retry(faults, RetryPolicy(base_s=0)), big.record, memoryview(big.data), workers)
    assert faults.calls["publish"] == 2
    assert faults.calls["read_into"] > 1, "it was read back"
    assert read_all(tier, big.key) == big.data
    faults = Faults(tier, Fault("size", Raise(NotFoundError("a race"))))
    assert not flush_image(faults, big.record, memoryview(big.data), workers)


@pytest.mark.parametrize("bit", [0, 8 * BIG, 8 * (BLOCK_BYTES + 5), -1])
def test_a_lost_publish_of_what_stands_otherwise_now_is_no_success(tier, big, workers, bit):
    class Spoilt(LoseAnswer):
        def after(self, buffer):
            flip(tier, big.key, bit % (8 * len(big.data)))
            super().after(buffer)

    faults = Faults(tier, Fault("publish", Spoilt()))
    with pytest.raises(CorruptError, match="other bytes"):
        flush_image(Retry(faults, RetryPolicy(base_s=0)), big.record, memoryview(big.data), workers)
    assert faults.faults[0].fired == 1


def test_a_publish_that_failed_and_then_lost_the_race_is_no_success(tier, big, workers):
    other = make_image(ImageId(1, 100, 0), world_size=1, elements=BIG, seed=1)

    class Beaten(Raise):
        def before(self, buffer):
            put_image(tier, other)
            super().before(buffer)

    faults = Faults(tier, Fault("publish", Beaten()))
    with pytest.raises(CorruptError, match="other bytes"):
        flush_image(Retry(faults, RetryPolicy(base_s=0)), big.record, memoryview(big.data), workers)
    assert read_all(tier, big.key) == other.data


def test_nothing_looks_at_the_buffer_after_a_failed_flush(tier, big, workers):
    release, entered = threading.Event(), threading.Event()

    def hang(seconds):
        entered.set()
        release.wait(seconds)

    slow = Fault("write", Hang(10, sleep=hang))
    faults = Faults(tier, slow, Fault("write", Raise(), after=1))
    outcome = []

    def run():
        try:
            flush_image(faults, big.record, memoryview(big.data), workers)
        except TierUnavailableError as e:
            outcome.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    assert entered.wait(30)
    thread.join(0.1)
    assert thread.is_alive()  # the failed part does not end it while another part still reads the buffer
    release.set()
    thread.join(30)
    assert outcome


@pytest.mark.parametrize("dropped", [True, False])
def test_parts_end_with_their_pool(dropped):
    """Whether it drops what waits, or takes no more: nobody waits for parts that never come, and none runs on."""
    workers, entered, release = pool(1), threading.Event(), threading.Event()
    ran: list[int] = []
    outcome: list[tuple[str, list[int]]] = []

    def part(begin):
        entered.set()
        release.wait(30)
        ran.append(begin)

    def begins():
        yield 0
        assert entered.wait(30)
        if dropped:
            yield 1
        workers.shutdown(wait=False, cancel_futures=True)
        if not dropped:
            yield 1

    def run():
        try:
            run_parts(workers, part, begins())
        except RuntimeError as e:
            outcome.append((str(e), list(ran)))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert entered.wait(30)
    thread.join(0.1)
    assert thread.is_alive()  # the part that runs still looks at the buffer
    release.set()
    thread.join(30)
    workers.shutdown()
    assert [("shut" in text, done) for text, done in outcome] == [(True, [0])]


# Fetch ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("elements", [1, 100, BLOCK_BYTES - 4096, BLOCK_BYTES, BIG])
def test_what_was_flushed_is_fetched_every_byte_once(tier, workers, elements):
    image = make_image(ImageId(1, 100, 0), world_size=1, elements=elements)
    put_image(tier, image)
    read: list[int] = []
    buffer = aligned_buffer(image.record.size_bytes)
    header = fetch_image(tier, image.record, buffer, workers, progress=read.append)
    assert buffer == image.data
    assert header == image.header
    assert sum(read) == image.record.size_bytes


def test_posix_images_are_fetched(tmp_path, big, workers):
    tier = PosixTier(str(tmp_path / "t"))
    flush_image(tier, big.record, memoryview(big.data), workers)
    assert fetch(tier, big, workers)[1] == big.data


@pytest.mark.parametrize("where", [0, 100, 4096, BLOCK_BYTES, 3 * BLOCK_BYTES + 7, BIG, -1, -4096, -5000])
def test_a_flipped_bit_is_found_wherever_it_is(tier, big, workers, where):
    put_image(tier, big)
    flip(tier, big.key, 8 * (where % len(big.data)) + 3)
    with pytest.raises(CorruptError) as e:
        fetch(tier, big, workers)
    assert (e.value.tier, e.value.key) == ("home", big.key)


def test_a_bit_flipped_on_the_way_is_found(tier, big, workers):
    put_image(tier, big)
    faults = Faults(tier, Fault("read_into", FlipBit(12345), after=3))
    with pytest.raises(CorruptError, match=r"block \d+"):
        fetch(faults, big, workers)
    assert faults.faults[0].fired == 1
    assert fetch(tier, big, workers)[1] == big.data


@pytest.mark.parametrize("n_bytes", [0, 1, 4095, 4096, 12288, BLOCK_BYTES, BIG])
def test_a_truncated_image_is_corrupt(tier, big, workers, n_bytes):
    spoil(tier, big.key, big.data[:n_bytes])
    with pytest.raises(CorruptError):
        fetch(tier, big, workers)


def test_a_whole_image_that_is_another_one_is_refused(tier, big, workers):
    other = make_image(ImageId(1, 100, 0), world_size=1, elements=BIG, seed=1)
    spoil(tier, big.key, other.data)
    with pytest.raises(CorruptError, match="not the one recorded"):
        fetch(tier, big, workers)
    moved = make_image(ImageId(1, 200, 0), world_size=1, elements=BIG)
    spoil(tier, big.key, moved.data)
    with pytest.raises(CorruptError, match="step 200"):
        fetch(tier, big, workers)


def test_random_bytes_are_no_image(tier, big, workers):
    spoil(tier, big.key, bytes(len(big.data)))
    with pytest.raises(CorruptError):
        fetch(tier, big, workers)


def test_an_image_of_a_newer_holdfast_is_told_as_such(tier, big, workers):
    spoil(tier, big.key, big.data.replace(b'"holdfast.format":"0"', b'"holdfast.format":"7"', 1))
    with pytest.raises(FormatVersionError) as e:
        fetch(tier, big, workers)
    assert e.value.key == big.key
    assert isinstance(verify_image(tier, big.record.id).error, FormatVersionError)


def test_a_failing_read_ends_the_fetch_with_its_error(tier, big, workers):
    put_image(tier, big)
    faults = Faults(tier, Fault("read_into", Raise(), after=4))
    with pytest.raises(TierUnavailableError):
        fetch(faults, big, workers)


def test_what_is_not_there_is_not_found(tier, big, workers):
    with pytest.raises(NotFoundError):
        fetch(tier, big, workers)


def test_a_buffer_of_another_length_is_a_mistake(tier, big, workers):
    with pytest.raises(ValueError, match="buffer"):
        fetch_image(tier, big.record, memoryview(bytearray(4096)), workers)
    with pytest.raises(ValueError, match="buffer"):
        flush_image(tier, big.record, memoryview(big.data)[1:], workers)


# Verify ---------------------------------------------------------------------------------------------------------------
def test_a_good_checkpoint_verifies_in_bounded_memory(tier, big):
    begin(tier)
    put_image(tier, big)
    checkpoint = make(1, 100, world_size=1)
    checkpoint.images = [big]
    manifest = commit_images(tier, checkpoint)
    seen: list[int] = []
    largest: list[int] = []

    class Watch(Faults):
        def read_into(self, key, offset, buffer, *, cached=False):
            assert not cached  # a cache proves nothing of what stands on the tier
            largest.append(len(buffer))
            super().read_into(key, offset, buffer)

    verdicts = list(verify_checkpoint(Watch(tier), manifest, buffer=aligned_buffer(BLOCK_BYTES), progress=seen.append))
    assert [(v.ok, v.record) for v in verdicts] == [(True, big.record)]
    assert sum(seen) == big.record.size_bytes
    assert max(largest) == BLOCK_BYTES


def test_one_bad_image_of_several_is_a_result(tier):
    begin(tier)
    checkpoint = save(tier, 1, 100)
    flip(tier, checkpoint.images[1].key, 8 * 5000)
    verdicts = list(verify_checkpoint(tier, read_manifest(tier, CheckpointId(1, 100))))
    assert [v.ok for v in verdicts] == [True, False]
    error = verdicts[1].error
    assert isinstance(error, CorruptError)
    assert (error.tier, error.key, error.step) == ("home", checkpoint.images[1].key, 100)


def test_every_bit_counts(tier):
    begin(tier)
    image = save(tier, 1, 100).images[0]
    manifest = read_manifest(tier, CheckpointId(1, 100))
    for byte in range(0, len(image.data), 37):
        data = bytearray(image.data)
        data[byte] ^= 1 << byte % 8
        spoil(tier, image.key, data)
        assert not next(verify_checkpoint(tier, manifest)).ok, byte


def test_missing_short_foreign_and_unreadable_images_are_results(tier):
    begin(tier)
    images = save(tier, 1, 100).images
    manifest = read_manifest(tier, CheckpointId(1, 100))
    spoil(tier, images[0].key, images[0].data[:-4096])
    tier.delete(images[1].key)
    short, missing = verify_checkpoint(tier, manifest)
    assert isinstance(short.error, CorruptError)
    assert isinstance(missing.error, NotFoundError)
    spoil(tier, images[0].key, images[1].data)
    assert not next(verify_checkpoint(tier, manifest)).ok
    away = Faults(tier, Fault("size", Raise(), times=None))
    assert [type(v.error) for v in verify_checkpoint(away, manifest)] == [TierUnavailableError] * 2


def test_a_proven_image_that_the_manifest_does_not_mean_is_bad(tier):
    begin(tier)
    image = save(tier, 1, 100).images[0]
    manifest = read_manifest(tier, CheckpointId(1, 100))
    other = make_image(ImageId(1, 100, 0), elements=101)
    assert other.record.size_bytes == image.record.size_bytes
    spoil(tier, image.key, other.data)
    lying = replace(manifest, images=(other.record, manifest.images[1]))
    assert "disagree" in str(next(verify_checkpoint(tier, lying)).error)
    assert "checksum" in str(next(verify_checkpoint(tier, manifest)).error)
    assert "run" in str(next(verify_checkpoint(tier, replace(lying, run="other"))).error)


def test_an_image_that_two_steps_name_is_read_once(tier):
    begin(tier)
    first = make_sharing(1, 100, None)
    second = make_sharing(1, 200, first.images[:2])
    manifests = []
    for checkpoint in (first, second):
        upload(tier, checkpoint)
        manifests.append(commit_images(tier, checkpoint))
    proven: Proven = {}
    read: list[int] = []
    verdicts = [v for m in manifests for v in verify_checkpoint(tier, m, progress=read.append, proven=proven)]
    assert [v.ok for v in verdicts] == [True] * 8
    assert [v.id.step for v in verdicts if v.again] == [100, 100]
    assert sum(read) == sum(v.size_bytes for v in verdicts if not v.again)
    assert len(proven) == 6
    # What another manifest says otherwise of an image is looked at again, and what was bad is not remembered.
    other = replace(manifests[1], run="another")
    assert not any(v.ok or v.again for v in verify_checkpoint(tier, other, proven=proven))
    flip(tier, first.images[0].key, 40_000)
    proven = {}
    bad = [v.id for m in manifests for v in verify_checkpoint(tier, m, proven=proven) if not v.ok and not v.again]
    assert bad == [first.images[0].record.id] * 2


def test_verify_without_a_record_tells_what_the_bytes_are(tier):
    begin(tier)
    checkpoint = save(tier, 1, 100)
    verdict = verify_image(tier, checkpoint.records[0].id)
    assert verdict.record == checkpoint.records[0]
    assert verdict.header == checkpoint.headers[0]
    assert names.parse_image_key(verdict.key) == verdict.id
    assert entry(tier, CheckpointId(1, 100)).loadable
