"""The arena: dealing, reuse, budget, and what a next agent finds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.agent.arena import Arena, Slot
from holdfast.errors import CapacityError
from holdfast.wire.pages import PAGE_BYTES, SlotState

IMAGE = 64 * 1024


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[Arena]:
    made = Arena(tmp_path / "arena", budget_bytes=10 * (IMAGE + PAGE_BYTES))
    yield made
    made.close()


def deal(arena: Arena, rank: int, count: int = 4, image_bytes: int = IMAGE) -> list[Slot]:
    """What the agent does: deal, make ready, say so on the page."""
    slots = arena.deal(rank, count, image_bytes)
    for slot in slots:
        if not slot.ready:
            arena.make_ready(slot)
        slot.page.dealt_rank = rank
        slot.reserved_for = -1
    return slots


def test_dealt_slots_have_room_and_zeroed_pages(arena: Arena) -> None:
    slots = deal(arena, rank=3)
    assert [s.number for s in slots] == [0, 1, 2, 3]
    for slot in slots:
        assert slot.page.valid
        assert slot.page.state == SlotState.FREE
        assert slot.page.dealt_rank == 3
        assert slot.capacity_bytes == IMAGE
        blocks = os.stat(slot.file.path).st_blocks * 512
        assert blocks >= IMAGE, "the room is promised by the file system, not only named"


def test_a_slot_that_is_ready_but_not_yet_dealt_goes_to_no_other_rank(arena: Arena) -> None:
    slots = arena.deal(0, 4, IMAGE)
    for slot in slots:
        arena.make_ready(slot)
    assert not set(map(id, arena.deal(1, 4, IMAGE))) & set(map(id, slots))
    assert arena.deal(0, 4, IMAGE) == slots, "asked again, the rank gets the same"


def test_dealing_again_gives_the_same_slots(arena: Arena) -> None:
    assert deal(arena, 0) == deal(arena, 0)


def test_a_slot_that_holds_an_image_of_the_rank_counts_as_its_own(arena: Arena) -> None:
    first = deal(arena, 0)
    first[2].page.state = SlotState.HELD
    first[2].page.rank = 0
    for slot in first:
        slot.page.dealt_rank = -1
    again = deal(arena, 0)
    assert first[2] in again
    assert len(arena.slots) == 4


def test_over_budget_is_refused_with_the_sum_and_what_to_set(arena: Arena) -> None:
    deal(arena, 0)
    deal(arena, 1)
    with pytest.raises(CapacityError, match=r"4 slots x 64 KiB.*budget") as e:
        arena.deal(2, 4, IMAGE)
    assert "HOLDFAST_ARENA_DIR" in e.value.hint
    assert len(arena.slots) == 8, "a refusal deals nothing"


def test_slots_of_which_one_cannot_be_made_are_all_given_back(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    create = arena.create
    made: list[Slot] = []

    def creates(capacity_bytes: int) -> Slot:
        if len(made) == 2:
            raise CapacityError("too many files are open")
        made.append(create(capacity_bytes))
        return made[-1]

    monkeypatch.setattr(arena, "create", creates)
    with pytest.raises(CapacityError):
        arena.deal(0, 4, IMAGE)
    assert len(made) == 2
    assert arena.slots == {}
    assert list(arena.root.iterdir()) == []


def test_free_slots_nobody_was_dealt_make_room(arena: Arena) -> None:
    for slot in deal(arena, 0) + deal(arena, 1):
        slot.page.dealt_rank = -1
    slots = deal(arena, 0, count=2, image_bytes=4 * IMAGE)
    assert all(s.capacity_bytes >= 4 * IMAGE for s in slots)
    assert arena.used_bytes <= arena.budget_bytes


def test_a_held_or_filling_slot_never_makes_room(arena: Arena) -> None:
    slots = deal(arena, 0) + deal(arena, 1)
    for slot, state in zip(slots, [SlotState.HELD, SlotState.FILLING, SlotState.STAGED] * 3, strict=False):
        slot.page.dealt_rank = -1
        slot.page.state = state
    with pytest.raises(CapacityError):
        arena.deal(9, 4, IMAGE)
    assert len(arena.slots) == 8


def test_the_next_agent_finds_slots_and_their_bytes(arena: Arena) -> None:
    slot = deal(arena, 0)[1]
    slot.page.state = SlotState.HELD
    slot.page.image_bytes = 5
    slot.room(5)[:] = b"bytes"
    (arena.root / "slot-00077").write_bytes(b"no page, no image")
    (arena.root / "slot-00078").write_bytes(bytes(3 * PAGE_BYTES))
    successor = Arena(arena.root, arena.budget_bytes)
    found = {s.number: s for s in successor.adopt()}
    assert sorted(found) == [0, 1, 2, 3]
    assert bytes(found[1].image) == b"bytes"
    assert not (arena.root / "slot-00077").exists()
    found.clear()
    successor.close()


def test_a_slot_whose_agent_died_making_it_ready_is_not_adopted(arena: Arena) -> None:
    deal(arena, 0, count=1)
    half_made = arena.create(4 * IMAGE)
    successor = Arena(arena.root, arena.budget_bytes)
    assert [s.number for s in successor.adopt()] == [0]
    assert not half_made.file.path.exists()
    successor.close()


def test_a_slot_file_without_any_room_is_not_looked_into(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    path = arena.root / "slot-00007"
    path.touch()
    os.truncate(path, 4 * IMAGE)
    monkeypatch.setattr("holdfast.agent.arena.MappedFile", None)
    assert arena.adopt() == []
    assert not path.exists()


def test_room_counts_what_a_slot_being_made_ready_has_been_promised_once(tmp_path: Path) -> None:
    arena = Arena(tmp_path / "arena", budget_bytes=0)
    before = arena.room_bytes()
    slot = arena.create(64 << 20)
    assert before - arena.room_bytes() >= 60 << 20
    slot.file.promise(slot.file.size_bytes)
    assert abs(before - arena.room_bytes() - slot.file.size_bytes) < 8 << 20
    arena.close()


def test_a_page_that_claims_more_than_its_slot_is_not_believed(arena: Arena) -> None:
    slot = deal(arena, 0)[0]
    slot.page.state = SlotState.HELD
    slot.page.image_bytes = 2**40
    successor = Arena(arena.root, arena.budget_bytes)
    assert 0 not in {s.number for s in successor.adopt()}
    successor.close()


def test_destroy_leaves_nothing(tmp_path: Path) -> None:
    arena = Arena(tmp_path / "holdfast-0" / "run", budget_bytes=0)
    deal(arena, 0)
    arena.destroy()
    assert list(tmp_path.iterdir()) == []


def test_a_slot_number_is_never_used_again(arena: Arena) -> None:
    """Agent and trainers know a slot by its number: another file under it would be taken for the one before."""
    first = [s.number for s in deal(arena, 0)]
    for slot in list(arena.slots.values()):
        slot.page.dealt_rank = -1
        arena.remove(slot)
    assert not set(first) & {s.number for s in deal(arena, 0)}
