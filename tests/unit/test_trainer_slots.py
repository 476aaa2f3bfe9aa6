"""Slots as a rank maps them: faulted and page-locked in the background, whatever is dealt meanwhile."""

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

from holdfast.config import Config
from holdfast.errors import AgentError, HoldfastError
from holdfast.trainer.slots import Slots
from holdfast.wire.mapped import MappedFile
from holdfast.wire.pages import PAGE_BYTES, SlotPage, SlotState

pytestmark = pytest.mark.torch


@pytest.fixture
def slots(tmp_path):
    """Two slots of rank 0 in files of their own."""
    settings = Config.from_url(str(tmp_path / "home")).resolve({"HOLDFAST_ARENA_DIR": str(tmp_path)})
    settings.arena.mkdir(parents=True, exist_ok=True)
    for number in range(2):
        file = MappedFile(settings.arena / f"slot-{number:05d}", 4 * PAGE_BYTES)
        page = SlotPage(file.buffer)
        page.dealt_rank = 0
        page.release()
        file.close()
    session: Any = SimpleNamespace(rank=0)
    made = Slots(session, settings)
    yield made
    made.close()


def wait_for(slots):
    deadline = time.monotonic() + 30
    while not slots.faulted() or slots._faulting is not None:
        assert time.monotonic() < deadline, slots._fault_error
        time.sleep(0.001)


def test_a_slot_is_locked_once_and_let_go_before_it_is_unmapped(slots):
    locked: list[int] = []
    unlocked: list[bool] = []

    def lock(buffer):
        locked.append(len(buffer))
        return lambda: unlocked.append(len(buffer) > 0)  # raises if it is unmapped already

    slots.page_lock = lock
    for _ in range(2):
        slots.dealt([0, 1], PAGE_BYTES)
        wait_for(slots)
    assert locked == [4 * PAGE_BYTES] * 2
    slots.dealt([0], PAGE_BYTES)
    wait_for(slots)
    assert len(unlocked) == 1
    slots.close()
    assert unlocked == [True, True]


def test_slots_faulted_before_a_device_was_seen_are_locked_then(slots):
    slots.dealt([0, 1], PAGE_BYTES)
    wait_for(slots)
    locked: list[int] = []

    def lock(buffer):
        locked.append(len(buffer))
        return lambda: None

    slots.page_lock = lock
    assert not slots.faulted()
    slots.dealt([0, 1], PAGE_BYTES)
    wait_for(slots)
    assert len(locked) == 2


def test_what_is_unmapped_is_counted_for_whoever_keeps_views_of_it(slots):
    slots.dealt([0, 1], PAGE_BYTES)
    wait_for(slots)
    slots.drop_stale()
    assert slots.unmapped == 0
    slots.slot(0).file.path.unlink()
    slots.drop_stale()
    assert slots.unmapped == 1
    slots.dealt([], PAGE_BYTES)
    assert slots.unmapped == 2


@pytest.fixture
def held_up(slots):
    """Two slots were dealt, and the thread that faults them is held up in the first, until the event is set."""
    begun, go_on = threading.Event(), threading.Event()

    def lock(buffer):
        begun.set()
        assert go_on.wait(30)
        return lambda: None

    slots.page_lock = lock
    slots.dealt([0, 1], PAGE_BYTES)
    assert begun.wait(30)
    yield go_on
    go_on.set()


def test_a_slot_that_is_no_longer_ours_is_unmapped_while_another_is_faulted(slots, held_up):
    other = slots.slot(1)
    slots.dealt([0], PAGE_BYTES)
    assert not slots.has(other)
    assert slots.unmapped == 1


def test_a_slot_that_is_faulted_as_it_is_lost_is_unmapped_with_the_next_save(slots, held_up):
    lost = slots.slot(0)
    slots.dealt([1], PAGE_BYTES)
    assert slots.has(lost), "a thread writes to it"
    held_up.set()
    wait_for(slots)
    slots._session.page = SimpleNamespace(start=1)
    assert slots.take(7, PAGE_BYTES).number == 1
    assert not slots.has(lost)
    assert slots.unmapped == 1


def test_a_slot_that_is_filled_as_it_is_lost_is_unmapped_with_the_save_after(slots):
    slots.dealt([0, 1], PAGE_BYTES)
    wait_for(slots)
    slots._session.page = SimpleNamespace(start=1)
    lost = slots.take(7, PAGE_BYTES)
    slots.dealt([1 - lost.number], PAGE_BYTES)
    lost.room(PAGE_BYTES)[:2] = b"ok"
    other = slots.take(7, PAGE_BYTES, image=0)
    assert slots.has(lost), "the same save fills it still"
    lost.page.state = SlotState.STAGED
    slots.give_back(other)
    assert slots.take(8, PAGE_BYTES) is other
    assert not slots.has(lost)
    assert slots.unmapped == 1


class AtTheEnd:
    """A lock that holds its thread up where that has found nothing more to do."""

    def __init__(self, slots):
        self.slots, self.lock = slots, slots._mapping
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __enter__(self):
        self.lock.acquire()

    def __exit__(self, *error):
        ended = self.slots._faulting is None and threading.current_thread() is not threading.main_thread()
        self.lock.release()
        if ended and not self.reached.is_set():
            self.reached.set()
            assert self.go_on.wait(30)


def test_slots_dealt_as_the_thread_ends_are_faulted(slots):
    gate = slots._mapping = AtTheEnd(slots)
    slots.dealt([0], PAGE_BYTES)
    assert gate.reached.wait(30)
    slots.dealt([0, 1], PAGE_BYTES)
    wait_for(slots)
    gate.go_on.set()


def test_slots_dealt_meanwhile_are_faulted_whatever_becomes_of_those_before(slots):
    begun, go_on = threading.Event(), threading.Event()

    def lock(buffer):
        if not begun.is_set():
            begun.set()
            assert go_on.wait(30)
            raise AgentError("the arena file is gone")
        return lambda: None

    slots.page_lock = lock
    slots.dealt([0], PAGE_BYTES)
    assert begun.wait(30)
    slots.dealt([1], PAGE_BYTES)
    go_on.set()
    wait_for(slots)
    assert slots._fault_error is None


def test_a_slot_that_cannot_be_made_ready_is_an_error_of_ours_for_who_waits(slots):
    def lock(buffer):
        raise MemoryError("no more")

    slots.page_lock = lock
    slots._session.page = SimpleNamespace(waiting_step=-1, waiting_image=0)
    slots._session.alive = True
    slots.dealt([0, 1], PAGE_BYTES)
    with pytest.raises(HoldfastError, match=r"slot 0 .*MemoryError: no more"):
        slots._wait_free(7, 10 * PAGE_BYTES, 0, 0.0)
