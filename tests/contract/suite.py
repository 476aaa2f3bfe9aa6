"""The conformance suite: what every tier and every wrapper has to keep (src/holdfast/tiers/contract.py).

Test functions over one fixture, `place`: where a tier keeps things, opened anew as often as a test likes. A new backend
adds its place to PLACES in test_tiers.py. Tests look at what is really stored, not only at round trips.
"""

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from holdfast.errors import (
    AlreadyExistsError,
    CorruptError,
    NotFoundError,
    TierError,
    UsageError,
)
from holdfast.tiers.contract import Tier, read_all

RACERS = 16
KEY = "images/00000001/000000000100/00000-0.safetensors"
SIZES = [0, 1, 4095, 4096, 4097, 3 * 4096, (1 << 20) + 13]


@dataclass
class Place:
    """Where a tier keeps things.

    `open(owner)` opens the tier; `stored()` is every byte string there under its key, `unfinished()` the names of
    uploads that are neither published nor gone; `outlives` says whether those outlive the object that began them;
    `close()` closes every tier opened.
    """

    open: Callable[[str], Tier]
    stored: Callable[[], dict[str, bytes]]
    unfinished: Callable[[], list[str]]
    outlives: bool = True
    close: Callable[[], None] = lambda: None


def pattern(n_bytes: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(n_bytes)


def view(data: bytes) -> memoryview:
    return memoryview(data)


def write_all(upload, data: bytes, part_bytes: int = 1 << 18) -> None:
    for begin in range(0, len(data), part_bytes):
        upload.write(begin, view(data)[begin : begin + part_bytes])


def publish(tier: Tier, key: str, data: bytes, *, if_absent: bool = True) -> None:
    upload = tier.upload(key, len(data))
    write_all(upload, data)
    upload.publish(if_absent=if_absent)


@pytest.fixture
def tier(place):
    opened = place.open("1.a")
    yield opened
    opened.close()


# What a tier says of itself -------------------------------------------------------------------------------------------
def test_capabilities_make_sense(tier):
    said = tier.capabilities
    assert said.alignment_bytes > 0
    assert said.part_bytes % said.alignment_bytes == 0
    assert said.concurrency >= 1
    assert tier.name


# Small objects --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size_bytes", SIZES)
def test_put_stores_exactly_the_bytes(tier, place, size_bytes):
    data = pattern(size_bytes)
    tier.put("attempts/00000001", view(data))
    assert place.stored() == {"attempts/00000001": data}
    assert read_all(tier, "attempts/00000001") == data
    assert tier.size("attempts/00000001") == size_bytes


def test_put_replaces(tier, place):
    tier.put("a", view(b"first, and longer"))
    tier.put("a", view(b"second"))
    assert place.stored() == {"a": b"second"}


def test_put_if_absent_leaves_what_is_there(tier, place):
    tier.put("a", view(b"first"), if_absent=True)
    with pytest.raises(AlreadyExistsError) as e:
        tier.put("a", view(b"second"), if_absent=True)
    assert (e.value.tier, e.value.key) == (tier.name, "a")
    assert place.stored() == {"a": b"first"}
    assert place.unfinished() == []


def test_put_keeps_its_own_copy(tier):
    data = bytearray(b"first")
    tier.put("a", memoryview(data))
    data[:] = b"other"
    assert read_all(tier, "a") == b"first"


def test_one_of_many_racing_puts_wins(tier, place):
    start = threading.Barrier(RACERS)

    def race(n: int) -> int | None:
        start.wait()
        try:
            tier.put("attempts/00000001", view(pattern(300, n)), if_absent=True)
        except AlreadyExistsError:
            return None
        return n

    with ThreadPoolExecutor(RACERS, thread_name_prefix="test") as pool:
        winners = [n for n in pool.map(race, range(RACERS)) if n is not None]
    assert len(winners) == 1
    assert place.stored() == {"attempts/00000001": pattern(300, winners[0])}
    assert place.unfinished() == []


# Uploads --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size_bytes", SIZES)
def test_an_upload_is_the_bytes_written(tier, place, size_bytes):
    data = pattern(size_bytes)
    publish(tier, KEY, data)
    assert place.stored() == {KEY: data}
    assert place.unfinished() == []
    assert tier.size(KEY) == size_bytes


def test_nothing_shows_before_publish(tier, place):
    data = pattern(1 << 20)
    upload = tier.upload(KEY, len(data))
    write_all(upload, data)
    assert list(tier.list("")) == []
    assert place.stored() == {}
    with pytest.raises(NotFoundError):
        tier.size(KEY)
    with pytest.raises(NotFoundError):
        tier.read_into(KEY, 0, memoryview(bytearray(1)))
    upload.publish()
    assert [i.key for i in tier.list("")] == [KEY]


def test_parts_may_come_in_any_order_and_twice(tier):
    data = pattern((1 << 20) + 77)
    upload = tier.upload(KEY, len(data))
    begins = list(range(0, len(data), 50_001)) * 2
    random.Random(1).shuffle(begins)
    for begin in begins:
        upload.write(begin, view(data)[begin : begin + 50_001])
    upload.publish()
    assert read_all(tier, KEY) == data


def test_parts_may_come_from_many_threads(tier):
    data = pattern(8 << 20)
    upload = tier.upload(KEY, len(data))
    with ThreadPoolExecutor(8, thread_name_prefix="test") as pool:
        list(pool.map(lambda b: upload.write(b, view(data)[b : b + (1 << 18)]), range(0, len(data), 1 << 18)))
    upload.publish()
    assert read_all(tier, KEY) == data


def test_a_written_buffer_is_the_callers_again(tier):
    data = bytearray(pattern(8192))
    want = bytes(data)
    upload = tier.upload(KEY, len(data))
    upload.write(0, memoryview(data))
    data[:] = bytes(8192)
    upload.publish()
    assert read_all(tier, KEY) == want


@pytest.mark.parametrize(("offset", "n_bytes"), [(-1, 1), (0, 101), (100, 1), (50, 51)])
def test_a_write_outside_the_object_is_refused(tier, offset, n_bytes):
    upload = tier.upload(KEY, 100)
    with pytest.raises(UsageError):
        upload.write(offset, view(bytes(n_bytes)))
    upload.abort()


@pytest.mark.parametrize("written", [[], [(0, 4096)], [(4096, 4096)], [(0, 4000), (4001, 4191)]])
def test_an_upload_with_a_hole_is_not_published(tier, place, written):
    upload = tier.upload(KEY, 8192)
    for begin, n_bytes in written:
        upload.write(begin, view(bytes(n_bytes)))
    with pytest.raises(TierError):
        upload.publish()
    upload.abort()
    assert place.stored() == {}
    assert place.unfinished() == []


def test_abort_leaves_nothing(tier, place):
    upload = tier.upload(KEY, 8192)
    upload.write(0, view(pattern(4096)))
    upload.abort()
    upload.abort()
    assert place.stored() == {}
    assert place.unfinished() == []
    with pytest.raises(TierError):
        upload.write(0, view(b"x"))
    with pytest.raises(TierError):
        upload.publish()


def test_abort_after_publish_changes_nothing(tier, place):
    publish(tier, KEY, b"whole")
    upload = tier.upload("other", 5)
    write_all(upload, b"other")
    upload.publish()
    upload.abort()
    assert place.stored() == {KEY: b"whole", "other": b"other"}


def test_publish_does_not_overwrite(tier, place):
    publish(tier, KEY, b"first")
    with pytest.raises(AlreadyExistsError) as e:
        publish(tier, KEY, b"second")
    assert (e.value.tier, e.value.key) == (tier.name, KEY)
    assert place.stored() == {KEY: b"first"}
    assert place.unfinished() == []


def test_publish_overwrites_when_asked(tier, place):
    publish(tier, KEY, b"first")
    publish(tier, KEY, b"second", if_absent=False)
    assert place.stored() == {KEY: b"second"}


def test_put_and_upload_share_their_keys(tier, place):
    publish(tier, KEY, b"image")
    with pytest.raises(AlreadyExistsError):
        tier.put(KEY, view(b"small"), if_absent=True)
    tier.put("small", view(b"small"))
    with pytest.raises(AlreadyExistsError):
        publish(tier, "small", b"image")
    tier.put(KEY, view(b"replaced"))
    assert place.stored() == {KEY: b"replaced", "small": b"small"}


def test_one_of_many_racing_publishers_wins(tier, place):
    uploads = [tier.upload(KEY, 9000) for _ in range(RACERS)]
    for n, upload in enumerate(uploads):
        write_all(upload, pattern(9000, n))
    start = threading.Barrier(RACERS)

    def race(n: int) -> int | None:
        start.wait()
        try:
            uploads[n].publish()
        except AlreadyExistsError:
            return None
        return n

    with ThreadPoolExecutor(RACERS, thread_name_prefix="test") as pool:
        winners = [n for n in pool.map(race, range(RACERS)) if n is not None]
    assert len(winners) == 1
    assert place.stored() == {KEY: pattern(9000, winners[0])}
    assert place.unfinished() == []


# Reading --------------------------------------------------------------------------------------------------------------
def test_any_range_can_be_read(tier):
    data = pattern(300_000)
    publish(tier, KEY, data)
    for begin, end in [(0, 0), (0, 1), (1, 4097), (4096, 12288), (299_999, 300_000), (0, 300_000), (300_000, 300_000)]:
        for cached in (False, True):
            out = bytearray(end - begin)
            tier.read_into(KEY, begin, memoryview(out), cached=cached)
            assert out == data[begin:end]


@pytest.mark.parametrize(("offset", "n_bytes"), [(0, 5001), (4999, 2), (5000, 1), (4096, 4096), (99_999, 1)])
def test_reading_past_the_end_is_corruption(tier, offset, n_bytes):
    publish(tier, KEY, pattern(5000))
    for cached in (False, True):
        with pytest.raises(CorruptError) as e:
            tier.read_into(KEY, offset, memoryview(bytearray(n_bytes)), cached=cached)
        assert (e.value.tier, e.value.key) == (tier.name, KEY)


def test_what_is_not_there_is_not_found(tier):
    tier.put("a/b", view(b"x"))
    for key in ("missing", "a", "a/b/c", "a/missing"):
        for call in (tier.size, lambda k: tier.read_into(k, 0, memoryview(bytearray(1)))):
            with pytest.raises(NotFoundError) as e:
                call(key)
            assert (e.value.tier, e.value.key) == (tier.name, key)


def test_many_threads_may_read_at_once(tier):
    data = pattern(2 << 20)
    publish(tier, KEY, data)

    def read(begin: int) -> bool:
        out = bytearray(1 << 16)
        tier.read_into(KEY, begin, memoryview(out))
        return out == data[begin : begin + (1 << 16)]

    with ThreadPoolExecutor(8, thread_name_prefix="test") as pool:
        assert all(pool.map(read, range(0, len(data), 1 << 16)))


# Listing --------------------------------------------------------------------------------------------------------------
def test_list_is_in_key_order_with_sizes(tier):
    keys = ["a/b", "a-b", "a.b", "a/c/d", "a/c-d", "b", "a0", "é/ü", "Z", "z/1/2/3"]
    for n, key in enumerate(keys):
        tier.put(key, view(bytes(n)))
    assert [(i.key, i.size_bytes) for i in tier.list("")] == sorted((k, n) for n, k in enumerate(keys))


@pytest.mark.parametrize(
    "prefix", ["", "im", "images/", "images/1", "images/1/", "images/1/x", "images/10", "no", "x/"]
)
def test_a_prefix_is_any_beginning_of_a_key(tier, prefix):
    keys = ["images/1/x", "images/1/y", "images/10/x", "images/2/x", "images-old", "imprint", "x"]
    for key in keys:
        tier.put(key, view(b""))
    assert [i.key for i in tier.list(prefix)] == sorted(k for k in keys if k.startswith(prefix))


def test_list_bears_deletes_meanwhile(tier):
    keys = [f"images/{n // 10:03d}/{n:03d}" for n in range(100)]
    for key in keys:
        tier.put(key, view(b"x"))
    listing = tier.list("images/")
    seen = [next(listing).key]
    for key in keys[1:]:
        tier.delete(key)
    seen += [i.key for i in listing]
    assert seen[0] == keys[0]
    assert set(seen) <= set(keys)
    assert [i.key for i in tier.list("")] == keys[:1]


# Deleting -------------------------------------------------------------------------------------------------------------
def test_delete_is_idempotent(tier, place):
    tier.put("a/b/c", view(b"x"))
    publish(tier, KEY, b"image")
    for key in ("a/b/c", "a/b/c", "a/b/missing", "never/was", KEY, KEY):
        tier.delete(key)
    assert place.stored() == {}
    assert list(tier.list("")) == []
    tier.put("a/b/c", view(b"again"))
    assert place.stored() == {"a/b/c": b"again"}


def test_deleting_and_creating_neighbours_at_once(tier, place):
    def churn(n: int) -> None:
        for _ in range(20):
            tier.put(f"images/1/{n}", view(b"x"))
            tier.delete(f"images/1/{n}")
        tier.put(f"images/1/{n}", view(b"x"))

    with ThreadPoolExecutor(6, thread_name_prefix="test") as pool:
        list(pool.map(churn, range(6)))
    assert place.stored() == {f"images/1/{n}": b"x" for n in range(6)}


# Keys -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("key", ["a b", "größe/日本語", "a%20b", "a#b?c", "...", "a/.hidden", "-", "x" * 200])
def test_keys_are_taken_as_they_are(tier, place, key):
    tier.put(key, view(b"x"))
    publish(tier, key + "2", b"y")
    assert place.stored() == {key: b"x", key + "2": b"y"}
    assert {i.key for i in tier.list(key)} == {key, key + "2"}
    assert read_all(tier, key) == b"x"
    tier.delete(key)
    assert place.stored() == {key + "2": b"y"}


@pytest.mark.parametrize(
    "key", ["", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "./a", "a/.", ".tmp/x", "a\0b", "a\nb"]
)
def test_keys_that_are_none_are_refused(tier, place, key):
    calls = [
        lambda: tier.put(key, view(b"x")),
        lambda: tier.upload(key, 1),
        lambda: tier.read_into(key, 0, memoryview(bytearray(1))),
        lambda: tier.size(key),
        lambda: tier.delete(key),
    ]
    for call in calls:
        with pytest.raises(UsageError):
            call()
    assert place.stored() == {}


def test_settle_changes_nothing_and_bears_nothing_there(tier, place):
    publish(tier, KEY, b"image")
    for prefix in ("", "images/", "images/00000001/", KEY, "never/was/", "im"):
        tier.settle(prefix)
        tier.settle(prefix)
    assert place.stored() == {KEY: b"image"}


# Left-overs -----------------------------------------------------------------------------------------------------------
def test_sweep_removes_unfinished_uploads_of_an_owner(tier, place):
    for owner in ("1.dead", "10.alive"):
        left = place.open(owner).upload(KEY, 8192)
        left.write(0, view(pattern(4096)))
    publish(tier, "done", b"done")
    mine = tier.upload("mine", 4)
    write_all(mine, b"mine")
    assert tier.sweep(owner_prefix="2.") == 0
    assert tier.sweep(owner_prefix="1.d", untouched_s=60) == 0
    assert tier.sweep(owner_prefix="1.d") == (1 if place.outlives else 0)
    assert tier.sweep(untouched_s=60) == 0
    assert tier.sweep() == (1 if place.outlives else 0)
    mine.publish()
    assert place.stored() == {"done": b"done", "mine": b"mine"}


def test_close_is_idempotent_and_ends_uploads(place):
    opened = place.open("1.a")
    opened.upload(KEY, 4096)
    opened.close()
    opened.close()
    assert place.stored() == {}
    if place.outlives:
        assert place.unfinished() == []
