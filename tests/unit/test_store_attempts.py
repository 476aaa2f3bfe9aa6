"""Attempts: one winner per number, lineage by recorded parents, authority with the highest."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from tests.unit.store_fixtures import begin

from holdfast.errors import (
    ConfigError,
    CorruptError,
    FormatVersionError,
    SupersededError,
    TierError,
    TierPermissionError,
    TierUnavailableError,
)
from holdfast.format import attempt as codec
from holdfast.format import names
from holdfast.format.checksum import crc64nvme
from holdfast.model.identity import Attempt, CheckpointId
from holdfast.store.attempts import claim, read_attempts, require_authority
from holdfast.tiers.contract import read_all
from holdfast.tiers.memory import HeapSlots, MemoryTier
from holdfast.tiers.posix import PosixTier
from holdfast.tiers.wrappers import Fault, Faults, LoseAnswer, Raise, Retry, RetryPolicy


@pytest.fixture
def tier():
    return MemoryTier(HeapSlots(), name="home")


def test_the_first_attempt_is_one_and_says_what_it_stands_on(tier):
    attempt = claim(tier, run="r", parent=None, coordinator="host:1")
    assert attempt == Attempt("r", 1, None, "host:1")
    assert codec.decode(read_all(tier, "attempts/00000001")) == attempt
    second = claim(tier, run="r", parent=CheckpointId(1, 50), coordinator="host:2")
    assert second == Attempt("r", 2, CheckpointId(1, 50), "host:2")
    assert read_attempts([tier]).records == (attempt, second)


def test_racing_claims_get_numbers_of_their_own(tmp_path):
    start = threading.Barrier(8)

    def race(n):
        start.wait()
        own = PosixTier(str(tmp_path / "t"), owner=f"0.{n}")
        return claim(own, run="r", parent=None, coordinator=f"host:{n}")

    with ThreadPoolExecutor(8, thread_name_prefix="test") as pool:
        claimed = list(pool.map(race, range(8)))
    assert sorted(a.attempt for a in claimed) == list(range(1, 9))
    assert read_attempts([PosixTier(str(tmp_path / "t"))]).records == tuple(sorted(claimed, key=lambda a: a.attempt))


def test_numbers_are_above_all_that_was_seen_anywhere(tier):
    other = MemoryTier(HeapSlots())
    for _ in range(3):
        begin(other)
    assert claim(tier, [other], run="r", parent=None, coordinator="x").attempt == 4
    assert claim(tier, run="r", parent=None, coordinator="x", seen=9).attempt == 10
    assert claim(tier, run="r", parent=CheckpointId(20, 1), coordinator="x").attempt == 21


def test_a_further_tier_that_cannot_be_listed_is_passed_over(tier):
    broken = Faults(MemoryTier(HeapSlots()), Fault("list", Raise(), times=None))
    assert claim(tier, [broken], run="r", parent=None, coordinator="x").attempt == 1
    with pytest.raises(TierUnavailableError):
        claim(broken, run="r", parent=None, coordinator="x")


def test_a_spare_tier_that_lists_claims_and_cannot_read_them_is_passed_over(tier):
    spare = Faults(MemoryTier(HeapSlots(), name="spare"))
    begin(tier)
    begin(spare)
    begin(spare, CheckpointId(1, 50))
    failing = spare.add(Fault("read_into|size", Raise(TierError("EIO")), key="^attempts/00000002", times=None))
    attempts = read_attempts([tier], spare=[spare])
    assert (attempts.highest, [a.attempt for a in attempts.records]) == (2, [1])
    assert [e.message for e in attempts.unread] == ["EIO"]
    assert attempts.unread_highest is attempts.unread[0], "it may be good, and says what counts"
    assert attempts.problems == ()
    assert claim(tier, [spare], run="r", parent=None, coordinator="x").attempt == 3, "its number is taken"
    attempts = read_attempts([tier], spare=[spare])
    assert (attempts.highest, attempts.unread_highest) == (3, None)
    assert CheckpointId(1, 50) not in attempts.lineage
    with pytest.raises(TierError, match="EIO"):
        read_attempts([spare])
    with pytest.raises(SupersededError):
        require_authority(spare, 1)
    with pytest.raises(TierError, match="EIO"):
        require_authority(spare, 2, CheckpointId(1, 50))
    failing.times = 0
    assert [a.attempt for a in read_attempts([tier], spare=[spare]).records] == [1, 2, 3]


def test_what_nobody_could_list_may_have_the_only_claim(tier):
    away = Faults(MemoryTier(HeapSlots()), Fault("list", Raise(), times=None))
    attempts = read_attempts([tier], spare=[away])
    assert attempts.unread_highest is attempts.unread[0]
    begin(tier)
    assert read_attempts([tier], spare=[away]).unread_highest is None
    tier.put(names.attempt_key(2), memoryview(b"damaged"))
    assert read_attempts([tier], spare=[away]).unread_highest is None, "damage is known, and told"


def test_an_error_of_the_create_is_not_swallowed(tier):
    broken = Faults(tier, Fault("put", Raise(TierPermissionError("no"))))
    with pytest.raises(TierPermissionError):
        claim(broken, run="r", parent=None, coordinator="x")


def test_a_lost_answer_is_ours_only_if_it_names_us(tier):
    faults = Faults(tier, Fault("put", LoseAnswer()))
    retry = Retry(faults, RetryPolicy(base_s=0))
    assert claim(retry, run="r", parent=None, coordinator="host:1").attempt == 1
    faults.add(Fault("put", Raise()))
    tier.put(names.attempt_key(2), memoryview(codec.encode(Attempt("r", 2, None, "host:2"))))
    assert claim(retry, run="r", parent=None, coordinator="host:1").attempt == 3


def test_a_tier_without_atomic_create_is_refused(tier):
    tier.capabilities = replace(tier.capabilities, atomic_create=False)
    with pytest.raises(ConfigError):
        claim(tier, run="r", parent=None, coordinator="x")


def test_a_damaged_claim_still_takes_its_number(tier):
    begin(tier)
    begin(tier)
    tier.put(names.attempt_key(2), memoryview(b"damaged"))
    tier.put("attempts/readme", memoryview(b"foreign"))
    attempts = read_attempts([tier])
    assert attempts.highest == 2
    assert [a.attempt for a in attempts.records] == [1]
    assert [(type(p), p.tier, p.key) for p in attempts.problems] == [(CorruptError, "home", "attempts/00000002")]
    assert CheckpointId(1, 5) not in attempts.lineage
    assert CheckpointId(2, 5) in attempts.lineage
    assert begin(tier) == 3


def test_a_good_copy_elsewhere_mends_a_damaged_claim(tier):
    begin(tier)
    other = MemoryTier(HeapSlots())
    other.put(names.attempt_key(1), memoryview(bytes(read_all(tier, names.attempt_key(1)))))
    tier.put(names.attempt_key(1), memoryview(b"damaged"))
    attempts = read_attempts([tier, other])
    assert [a.attempt for a in attempts.records] == [1]
    assert attempts.problems == ()


def test_a_claim_under_another_number_is_damage(tier):
    tier.put(names.attempt_key(2), memoryview(codec.encode(Attempt("r", 1, None, "x"))))
    assert isinstance(read_attempts([tier]).problems[0], CorruptError)


def test_a_run_of_a_newer_holdfast_is_not_claimed(tier):
    line = codec.encode(Attempt("r", 1, None, "x"))
    body = line[: line.index(b',"crc64nvme"')].replace(b'"version":0', b'"version":1')
    tier.put(names.attempt_key(1), memoryview(body + b',"crc64nvme":"%016x"}\n' % crc64nvme(body)))
    assert isinstance(read_attempts([tier]).problems[0], FormatVersionError)
    with pytest.raises(FormatVersionError):
        begin(tier)


def test_lineage_follows_the_parents(tier):
    begin(tier)
    begin(tier, CheckpointId(1, 50))
    begin(tier, CheckpointId(1, 30))
    lineage = read_attempts([tier]).lineage
    assert CheckpointId(1, 30) in lineage
    assert CheckpointId(1, 31) not in lineage
    assert CheckpointId(2, 60) not in lineage
    assert CheckpointId(3, 999) in lineage


def test_authority_is_with_the_highest_attempt(tier):
    begin(tier)
    require_authority(tier, 1, CheckpointId(1, 100))
    begin(tier, CheckpointId(1, 50))
    with pytest.raises(SupersededError) as e:
        require_authority(tier, 1, CheckpointId(1, 10))
    assert "attempt 2" in e.value.message
    require_authority(tier, 2, CheckpointId(1, 50))
    with pytest.raises(SupersededError, match="abandoned"):
        require_authority(tier, 2, CheckpointId(1, 51))


def test_claims_are_read_only_for_what_another_attempt_saved(tier):
    for parent in (None, CheckpointId(1, 50), CheckpointId(2, 90)):
        begin(tier, parent)
    asked = Faults(tier)
    require_authority(asked, 3)
    require_authority(asked, 3, CheckpointId(3, 100))
    with pytest.raises(SupersededError, match="attempt 3 owns"):
        require_authority(asked, 2, CheckpointId(2, 90))
    assert asked.calls == {"list": 3}
    require_authority(asked, 3, CheckpointId(1, 50))
    assert asked.calls["read_into"] == 3


def test_an_owner_whose_claim_was_deleted_is_not_superseded(tier):
    """That would count as no failure of the save."""
    begin(tier)
    begin(tier, CheckpointId(1, 50))
    tier.delete(names.attempt_key(2))
    with pytest.raises(TierError, match="the claim of attempt 2 is not there") as e:
        require_authority(tier, 2, CheckpointId(2, 60))
    assert e.value.kind == "tier"
    tier.delete(names.attempt_key(1))
    with pytest.raises(TierError, match="the claim of attempt 2 is not there"):
        require_authority(tier, 2, CheckpointId(2, 60))


def test_nothing_is_there_yet(tier):
    attempts = read_attempts([tier])
    assert (attempts.highest, attempts.records, attempts.problems) == (0, (), ())
    assert CheckpointId(1, 0) not in attempts.lineage
