"""Slots of one step: all or none are taken, and each says of its image all that the agent reads."""

from types import SimpleNamespace
from typing import Any

import pytest

from holdfast.model.identity import ImageId
from holdfast.trainer.handing import Described, describe, hand_over, take
from holdfast.wire.pages import PAGE_BYTES, SlotPage, SlotState


class Dealt:
    """Slots of which `there` come free; numbers are those of the images they are for."""

    def __init__(self, there):
        self.there = there
        self.free = set(there)

    def take(self, step, size_bytes, *, image, patience_s):
        if self.there[image] is None:
            return None
        if isinstance(self.there[image], BaseException):
            raise self.there[image]
        self.free.remove(image)
        return image

    def give_back(self, slot):
        self.free.add(slot)


def test_slots_are_taken_in_the_order_given_and_answered_by_image():
    slots: Any = Dealt({0: True, 1: True})
    taken: Any = take(slots, 7, [(1, 10), (0, 20)], 0.0)
    assert taken == [0, 1]
    assert not slots.free


@pytest.mark.parametrize("second", [None, KeyboardInterrupt()])
def test_what_was_taken_is_given_back_if_another_does_not_come(second):
    slots: Any = Dealt({1: True, 0: second})
    if second is None:
        assert take(slots, 7, [(1, 10), (0, 20)], 0.0) is None
    else:
        with pytest.raises(KeyboardInterrupt):
            take(slots, 7, [(1, 10), (0, 20)], 0.0)
    assert slots.free == {0, 1}


def test_a_slot_that_is_used_again_keeps_no_word_of_the_image_before():
    page = SlotPage(memoryview(bytearray(PAGE_BYTES)))
    slot: Any = SimpleNamespace(page=page)
    older = ImageId(2, 5, 3, 1)
    described = Described(ImageId(2, 9, 3), 4096, 4, image_count=2, due_mask=7, timed_mask=2, relies_on=older)
    page.committed_mask, page.state = 3, SlotState.FILLING
    describe(slot, described)
    assert (page.attempt, page.step, page.rank, page.image, page.image_bytes) == (2, 9, 3, 0, 4096)
    assert (page.world_size, page.image_count, page.due_mask, page.timed_mask) == (4, 2, 7, 2)
    assert (page.relies_on_step, page.committed_mask, page.state) == (5, 0, SlotState.FILLING)
    describe(slot, Described(ImageId(2, 10, 3), 4096, 4, due_mask=7))
    assert (page.image_count, page.timed_mask, page.relies_on_step) == (1, 0, -1)
    hand_over(slot)
    assert page.state == SlotState.STAGED
