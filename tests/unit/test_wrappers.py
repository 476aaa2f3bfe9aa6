"""Retry, Throttle and Faults on a memory tier, with a clock of the test's own."""

import threading

import pytest

from holdfast.errors import (
    AlreadyExistsError,
    TierError,
    TierFullError,
    TierPermissionError,
    TierUnavailableError,
)
from holdfast.tiers.contract import read_all
from holdfast.tiers.memory import HeapSlots, MemoryTier
from holdfast.tiers.wrappers import (
    Fault,
    Faults,
    FlipBit,
    FullAfter,
    Hang,
    LoseAnswer,
    Raise,
    Retry,
    RetryPolicy,
    Slow,
    Throttle,
)
from holdfast.tiers.wrappers.throttle import TokenBucket


class Clock:
    def __init__(self):
        self.now_s = 0.0
        self.slept: list[float] = []

    def __call__(self):
        return self.now_s

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now_s += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def inner():
    return MemoryTier(HeapSlots(), name="m")


@pytest.fixture
def faulty(inner):
    return Faults(inner)


@pytest.fixture
def tier(faulty, clock):
    policy = RetryPolicy(
        attempts=4, base_s=1.0, cap_s=3.0, deadline_s=100, clock=clock, sleep=clock.sleep, random=lambda: 1.0
    )
    return Retry(faulty, policy)


def view(data):
    return memoryview(data)


# Retry ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "operation", ["put", "upload", "write", "publish", "read_into", "size", "list", "delete", "settle", "sweep"]
)
def test_every_operation_is_asked_again(tier, faulty, clock, operation):
    fault = faulty.add(Fault(operation, Raise(), times=3))
    tier.put("a", view(b"x"))
    upload = tier.upload("b", 1)
    upload.write(0, view(b"y"))
    upload.publish()
    assert read_all(tier, "b") == b"y"
    assert [i.key for i in tier.list("")] == ["a", "b"]
    tier.delete("a")
    tier.settle("")
    tier.sweep()
    assert fault.fired == 3
    assert clock.slept == [1.0, 2.0, 3.0]  # doubled, capped, times a random of 1


def test_patience_is_bounded_in_number(tier, faulty):
    fault = faulty.add(Fault("put", Raise(), times=None))
    with pytest.raises(TierUnavailableError, match="after 4 attempts") as e:
        tier.put("a", view(b"x"))
    assert fault.fired == 4
    assert isinstance(e.value.__cause__, TierUnavailableError)


def test_patience_is_bounded_in_time(faulty, clock):
    policy = RetryPolicy(
        attempts=99, base_s=4, cap_s=4, deadline_s=10, clock=clock, sleep=clock.sleep, random=lambda: 1
    )
    faulty.add(Fault("put", Raise(), times=None))
    with pytest.raises(TierUnavailableError, match="after 3 attempts in 8"):
        Retry(faulty, policy).put("a", view(b"x"))
    assert clock.now_s == 8


def test_jitter_spreads_the_whole_range(faulty, clock):
    policy = RetryPolicy(attempts=3, base_s=1, clock=clock, sleep=clock.sleep, random=iter([0.0, 0.25]).__next__)
    faulty.add(Fault("size", Raise(), times=2))
    faulty.put("a", view(b"x"))
    assert Retry(faulty, policy).size("a") == 1
    assert clock.slept == [0.0, 0.5]


@pytest.mark.parametrize("error", [TierFullError("x"), TierPermissionError("x"), TierError("x"), KeyboardInterrupt()])
def test_what_no_retry_can_mend_is_told_at_once(tier, faulty, clock, error):
    fault = faulty.add(Fault("put", Raise(error), times=None))
    with pytest.raises(type(error)):
        tier.put("a", view(b"x"))
    assert fault.fired == 1
    assert clock.slept == []


def test_a_lost_answer_to_a_put_is_settled_by_the_bytes(tier, faulty):
    fault = faulty.add(Fault("put", LoseAnswer()))
    tier.put("a", view(b"mine"), if_absent=True)
    assert (fault.fired, faulty.calls["put"]) == (1, 2)


@pytest.mark.parametrize("theirs", [b"them", b"longer than mine", b""])
def test_a_put_that_failed_and_then_lost_the_race_is_no_success(tier, faulty, inner, theirs):
    faulty.add(Fault("put", Raise()))
    inner.put("a", view(theirs))
    with pytest.raises(AlreadyExistsError):
        tier.put("a", view(b"mine"), if_absent=True)
    assert read_all(inner, "a") == theirs


def test_exists_without_a_doubt_is_never_compared(tier, faulty, inner):
    inner.put("a", view(b"same"))
    with pytest.raises(AlreadyExistsError):
        tier.put("a", view(b"same"), if_absent=True)
    assert "read_into" not in faulty.calls


def test_a_lost_answer_to_a_publish_is_for_the_caller_to_settle(tier, faulty):
    fault = faulty.add(Fault("publish", LoseAnswer()))
    upload = tier.upload("a", 10)
    upload.write(5, view(b"there"))
    upload.write(0, view(b"hello"))
    with pytest.raises(AlreadyExistsError):
        upload.publish()
    upload.abort()
    assert (fault.fired, faulty.calls["publish"]) == (1, 2)
    assert read_all(tier, "a") == b"hellothere"


@pytest.mark.parametrize("theirs", [b"them!", b"longer than mine", b""])
def test_a_publish_that_lost_the_race_is_no_success(tier, faulty, inner, theirs):
    faulty.add(Fault("publish", Raise()))
    upload = tier.upload("a", 5)
    upload.write(0, view(b"mine!"))
    inner.put("a", view(theirs))
    with pytest.raises(AlreadyExistsError):
        upload.publish()
    assert read_all(inner, "a") == theirs


def test_a_listing_that_breaks_off_goes_on(clock):
    class Breaking(MemoryTier):
        broken = 0

        def list(self, prefix):
            for n, info in enumerate(super().list(prefix)):
                if n == 3 and self.broken < 2:
                    self.broken += 1
                    raise TierUnavailableError("injected")
                yield info

    inner = Breaking(HeapSlots())
    for n in range(8):
        inner.put(str(n), view(b""))
    tier = Retry(inner, RetryPolicy(clock=clock, sleep=clock.sleep))
    assert [i.key for i in tier.list("")] == [str(n) for n in range(8)]
    assert inner.broken == 2


# Throttle -------------------------------------------------------------------------------------------------------------
def test_bytes_take_their_time_after_the_burst(inner, clock):
    burst = inner.capabilities.part_bytes
    tier = Throttle(inner, write_bytes_per_s=burst, read_bytes_per_s=burst / 2, clock=clock, sleep=clock.sleep)
    data = view(bytearray(burst))
    upload = tier.upload("a", 3 * burst)
    for n in range(3):
        upload.write(n * burst, data)
    upload.publish()
    assert clock.slept == [1.0, 1.0]  # the first part is the burst
    clock.slept.clear()
    tier.read_into("a", 0, data)
    tier.read_into("a", 0, data)
    assert clock.slept == [2.0]
    tier.put("b", view(b""))
    assert len(clock.slept) == 1


def test_without_a_limit_nothing_waits(inner, clock):
    tier = Throttle(inner, clock=clock, sleep=clock.sleep)
    tier.put("a", view(bytes(1 << 20)))
    tier.read_into("a", 0, view(bytearray(1 << 20)))
    assert clock.slept == []


def waiting(call, *args):
    """The call, in a thread that is surely waiting by now, and what came of it."""
    came: list[object] = []

    def run():
        try:
            came.append(call(*args))
        except TierError as e:
            came.append(e.message)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(0.2)
    assert thread.is_alive(), "it waits for bandwidth"
    return thread, came


@pytest.mark.parametrize("end", ["abort", "close", "lift"])
def test_who_waits_for_bandwidth_is_let_go_at_once(inner, end):
    burst = inner.capabilities.part_bytes
    tier = Throttle(inner, write_bytes_per_s=1.0)
    upload = tier.upload("a", 2 * burst)
    upload.write(0, view(bytearray(burst)))
    thread, came = waiting(upload.write, burst, view(bytearray(burst)))
    assert list(tier.list("")) == [], "others are not held up"
    {"abort": upload.abort, "close": tier.close, "lift": lambda: tier.limit_writes(None)}[end]()
    thread.join(30)
    assert not thread.is_alive()
    assert came == [None if end == "lift" else f"{end.removesuffix('e')}ed while it waited for bandwidth"]
    if end == "abort":
        assert tier.write_bytes_per_s == 1.0
        tier.limit_writes(None)
        tier.put("b", view(bytearray(burst)))


def test_what_was_given_up_costs_no_bandwidth(inner, clock):
    bucket = TokenBucket(10.0, burst_bytes=100, clock=clock, sleep=clock.sleep)
    assert bucket.take(100)
    assert not bucket.take(50, lambda: True)
    clock.slept.clear()
    assert bucket.take(50)
    assert clock.slept == []


def test_another_limit_counts_from_the_next_call_on(inner, clock):
    bucket = TokenBucket(None, burst_bytes=100, clock=clock, sleep=clock.sleep)
    assert bucket.take(10**9)
    bucket.set_rate(10.0)
    assert bucket.take(150)
    assert clock.slept == [5.0]
    bucket.set_rate(None)
    assert bucket.take(10**9)
    assert clock.slept == [5.0]


# Faults ---------------------------------------------------------------------------------------------------------------
def test_a_fault_fires_where_and_as_often_as_told(faulty):
    fault = faulty.add(Fault("put|delete", Raise(), key="^x/", after=1, times=2))
    outcomes = []
    for key in ("x/1", "y/1", "x/2", "x/3", "x/4"):
        try:
            faulty.put(key, view(b""))
            outcomes.append("ok")
        except TierUnavailableError:
            outcomes.append("failed")
    assert outcomes == ["ok", "ok", "failed", "failed", "ok"]
    assert (fault.matched, fault.fired) == (4, 2)
    assert faulty.calls == {"put": 5}
    assert [i.key for i in faulty.inner.list("")] == ["x/1", "x/4", "y/1"]


def test_an_error_is_a_fresh_copy_each_time(faulty):
    error = TierUnavailableError("injected", key="k")
    faulty.add(Fault("size", Raise(error), times=2))
    caught = []
    for _ in range(2):
        with pytest.raises(TierUnavailableError) as e:
            faulty.size("a")
        caught.append(e.value)
    assert caught[0] is not caught[1]
    assert caught[0].key == "k"
    assert error.__traceback__ is None


def test_a_lost_answer_did_happen(faulty):
    faulty.add(Fault("put", LoseAnswer()))
    with pytest.raises(TierUnavailableError):
        faulty.put("a", view(b"x"))
    assert read_all(faulty, "a") == b"x"


@pytest.mark.parametrize(("bit", "want"), [(0, b"\x01\0\0"), (9, b"\0\x02\0"), (-1, b"\0\0\x80")])
def test_a_bit_flips_in_what_is_read_only(faulty, inner, bit, want):
    inner.put("a", view(bytes(3)))
    faulty.add(Fault("read_into", FlipBit(bit)))
    assert read_all(faulty, "a") == want
    assert read_all(faulty, "a") == bytes(3)


def test_a_disk_fills_up(faulty):
    fault = faulty.add(Fault("write|put", FullAfter(10), times=None))
    faulty.put("a", view(bytes(6)))
    upload = faulty.upload("b", 6)
    with pytest.raises(TierFullError):
        upload.write(0, view(bytes(6)))
    upload.abort()
    assert fault.fired == 2
    assert [i.key for i in faulty.list("")] == ["a"]


def test_a_hang_can_be_ended(faulty):
    release = threading.Event()
    fault = faulty.add(Fault("size", Hang(30, sleep=release.wait)))
    faulty.put("a", view(b"x"))
    thread = threading.Thread(target=faulty.size, args=("a",))
    thread.start()
    assert thread.is_alive()
    release.set()
    thread.join(30)
    assert fault.fired == 1


def test_slow_takes_as_long_as_the_bytes(faulty, clock):
    faulty.add(Fault("put", Slow(10, sleep=clock.sleep)))
    faulty.put("a", view(bytes(25)))
    assert clock.slept == [2.5]


def test_faults_can_be_cleared(faulty):
    faulty.add(Fault(".*", Raise(), times=None))
    faulty.clear()
    faulty.put("a", view(b""))
