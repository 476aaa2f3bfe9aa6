"""Measuring a tier: what is measured, how long it takes, how much room, and that nothing is left."""

import threading
import time

import pytest

from holdfast.errors import CorruptError, DeadlineError, TierFullError, UsageError
from holdfast.store.figures import FORMAT, Facts, Figures, figures_path, keep_figures, read_figures, state_dir
from holdfast.store.measure import BENCH, Limits, Measure, Room, new_room, room_key, sweep_dead
from holdfast.tiers import open_tier
from holdfast.tiers.memory import HeapSlots, MemoryTier
from holdfast.tiers.posix import PosixTier
from holdfast.tiers.wrappers import Fault, Faults, FullAfter, Raise, Slow

MIB = 1 << 20
DEAD = Room("0" * 8, 1, 1_000_000_000, "ab" * 4)
"""Of another boot, its deadline long past."""


@pytest.fixture
def tier(tmp_path):
    tier = PosixTier(str(tmp_path / "home"), owner="0.test")
    yield tier
    tier.close()


def measured(tier, *, seconds=1.0, space_bytes=4 * MIB) -> Measure:
    measure = Measure(tier, new_room(1, 60), Limits(seconds, space_bytes))
    try:
        measure.run()
    finally:
        measure.clean()
    return measure


def files(tmp_path):
    return [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()]


def test_every_size_that_fits_is_written_and_read_and_small_calls_are_timed(tier, tmp_path):
    measure = measured(tier, seconds=3.0, space_bytes=20 * MIB)
    cells = [(b.direction, b.size_bytes, b.calls_at_once) for b in measure.bandwidth]
    assert ("write", MIB, 1) in cells
    assert ("read", MIB, 1) in cells
    assert len(cells) == len(set(cells))
    assert all(b.low_bytes_per_s <= b.bytes_per_s <= b.high_bytes_per_s for b in measure.bandwidth)
    assert [one.operation for one in measure.latency] == ["put", "put_if_absent", "read", "list", "delete"]
    assert measure.latency[3].keys == measure.latency[0].samples
    assert not [c for c in cells if c[1] == 256 * MIB]
    assert any("space" in text for text in measure.notes)
    assert files(tmp_path) == []


def test_a_tier_in_memory_is_measured_as_well():
    tier = MemoryTier(HeapSlots())
    assert measured(tier).bandwidth
    assert list(tier.list("")) == []


def test_a_slow_tier_ends_in_time_and_what_was_left_out_is_noted(tier, tmp_path):
    slow = Faults(tier, Fault("write", Slow(4 * MIB), times=None))
    began = time.monotonic()
    measure = measured(slow, seconds=1.0, space_bytes=20 * MIB)
    assert time.monotonic() - began < 20
    assert any("no time was left" in text for text in measure.notes)
    assert files(tmp_path) == []


def test_a_tier_too_slow_for_one_sample_is_an_error_that_says_so(tier, tmp_path):
    slow = Faults(tier, Fault("write", Slow(MIB / 4), times=None))
    with pytest.raises(DeadlineError, match="one sample") as e:
        measured(slow, seconds=0.2)
    assert "--seconds" in e.value.hint
    assert files(tmp_path) == []


def test_a_tier_that_hangs_is_an_error_that_says_so(tier, tmp_path):
    let_go = threading.Event()

    class Hanging:
        def __getattr__(self, name):
            return getattr(tier, name)

        def read_into(self, key, offset, buffer):
            if len(buffer) == MIB:
                let_go.wait(60)
            tier.read_into(key, offset, buffer)

    with pytest.raises(DeadlineError, match="one sample"):
        measured(Hanging(), seconds=0.2)
    assert files(tmp_path) == []
    let_go.set()
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and thread.daemon:
            thread.join(30)


def test_a_full_disk_is_an_error_and_leaves_nothing(tier, tmp_path):
    faults = Faults(tier, Fault("write", FullAfter(2 * MIB), times=None))
    with pytest.raises(TierFullError):
        measured(faults, seconds=3.0)
    assert files(tmp_path) == []


def test_uploads_that_were_begun_are_ended_when_the_next_cannot_begin(tier, tmp_path):
    faults = Faults(tier, Fault("upload", Raise(TierFullError("injected")), key=f"large-{MIB}/00001$"))
    with pytest.raises(TierFullError):
        measured(faults, seconds=3.0)
    assert files(tmp_path) == []


def test_bytes_that_come_back_different_are_an_error(tier, tmp_path):
    class Lying:
        def __getattr__(self, name):
            return getattr(tier, name)

        def read_into(self, key, offset, buffer):
            tier.read_into(key, offset, buffer)
            buffer[0] ^= 1

    with pytest.raises(CorruptError, match="other bytes"):
        measured(Lying(), seconds=3.0)
    assert files(tmp_path) == []


def test_a_stopped_one_begins_no_further_call(tier, tmp_path):
    measure = Measure(tier, new_room(1, 60), Limits(4, 4 * MIB))
    measure.say = lambda share, what: measure.stop() if "MiB" in what else None
    with pytest.raises(DeadlineError, match="stopped"):
        measure.run()
    measure.clean()
    assert files(tmp_path) == []


def test_too_little_space_is_refused(tier):
    with pytest.raises(UsageError, match="too little"):
        Measure(tier, new_room(1, 60), Limits(1, 1000))


def test_what_a_killed_one_left_is_swept_and_nothing_else(tmp_path):
    home = tmp_path / "home"
    dead = PosixTier(str(home), owner=DEAD.owner)
    dead.put(f"{DEAD.prefix}0", memoryview(b"marker"))
    dead.put(f"{DEAD.prefix}small/00001", memoryview(b"x"))
    dead.put("images/00000001/000000000100/00000-0.safetensors", memoryview(b"a run's"))
    dead.put(f"{BENCH}somebody-else", memoryview(b"not ours"))
    (home / ".tmp" / f"{DEAD.owner}-0011").write_bytes(b"an upload that was under way")
    alive = new_room(1, 60)  # process 1 lives
    dead.put(f"{alive.prefix}0", memoryview(b"marker"))
    tier = PosixTier(str(home), owner=alive.owner)
    assert sweep_dead(tier) == 3
    left = {info.key for info in tier.list("")}
    assert left == {
        f"{alive.prefix}0",
        f"{BENCH}somebody-else",
        "images/00000001/000000000100/00000-0.safetensors",
    }
    assert not list((home / ".tmp").iterdir())
    assert sweep_dead(tier) == 0


def test_one_of_another_node_is_dead_only_long_after_its_deadline():
    room = Room("f" * 8, 1, 1000, "00" * 4)
    assert not room.is_dead(1000 + 3000)
    assert room.is_dead(1000 + 3601)
    assert room_key(f"{room.prefix}small/00001") == room
    assert room_key(f"images/{room.name}/x") is None
    assert room_key(f"{BENCH}x/y") is None


def test_a_process_of_another_container_is_not_dead_because_nobody_sees_it(monkeypatch):
    room = new_room(1 << 30, 60)  # no process has that number
    assert room.is_dead(time.time())
    monkeypatch.setattr("os.readlink", lambda path: "pid:[1]")
    assert not room.is_dead(time.time())


def test_figures_are_kept_and_found_again(tmp_path):
    facts = Facts("shared", "node", 16 * MIB, 8, True, "h", 2, 1, "k", "x86_64", "ext4")
    figures = Figures(FORMAT, "file:///data/run 7", "2026-01-01T00:00:00+00:00", 1.0, MIB, facts, (), (), ("a note",))
    path = keep_figures(tmp_path / "state", figures)
    assert path == figures_path(tmp_path / "state", figures.url)
    assert read_figures(tmp_path / "state", figures.url) == figures
    assert read_figures(tmp_path / "state", "file:///data/other") is None
    assert [p.name for p in (tmp_path / "state").iterdir()] == [path.name]
    path.write_text("{")
    assert read_figures(tmp_path / "state", figures.url) is None


def test_figures_stand_in_the_users_state_directory(tmp_path):
    assert state_dir({"XDG_STATE_HOME": str(tmp_path)}) == tmp_path / "holdfast" / "tiers"
    assert state_dir({"XDG_STATE_HOME": "relative"}).parts[-4:] == (".local", "state", "holdfast", "tiers")


def test_open_tier_is_what_the_command_measures(tmp_path):
    with_url = open_tier(f"file://{tmp_path}/home", name="tier", owner=DEAD.owner)
    assert measured(with_url).bandwidth
    with_url.close()
