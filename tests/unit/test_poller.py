"""What trainers wait for, as the agent hears of it from their pages."""

from types import SimpleNamespace
from typing import Any

from holdfast.agent.poller import Poller
from holdfast.lifecycle import events
from holdfast.model.identity import CheckpointId


def watched():
    """A rank at step 5, its page, and what is told of it."""
    told: list[Any] = []
    page = SimpleNamespace(attempt=1, current_step=5, given_up_step=-1, waiting_step=-1, waiting_image=0)
    trainers = {0: SimpleNamespace(page=page, alive=True)}
    arena: Any = SimpleNamespace(slots={})
    launches: Any = SimpleNamespace(trainers=trainers)
    poller = Poller(arena, launches, told.append)
    return poller, page, arena, told


def poll_amid(poller, arena, change):
    """A poll that finds the page changed after it has begun."""

    class Slots(dict):
        def values(self):
            change()
            return super().values()

    arena.slots = Slots()
    poller.poll(())
    arena.slots = {}


def waits(told):
    return [e for e in told if isinstance(e, (events.SlotWanted, events.SlotWantOver))]


def test_a_rank_that_waits_for_its_other_image_of_the_same_step_is_heard():
    poller, page, _, told = watched()
    for image in (1, 1, 0):
        page.waiting_step, page.waiting_image = 5, image
        poller.poll(())
    page.waiting_step = -1
    poller.poll(())
    poller.poll(())
    assert waits(told) == [events.SlotWanted(0, 5, 1), events.SlotWanted(0, 5, 0), events.SlotWantOver(0)]


def test_a_wait_that_begins_amid_a_poll_is_told_with_the_next():
    """What the rank staged before it is told first: by the looks at the slots of that next poll."""
    poller, page, arena, told = watched()
    poll_amid(poller, arena, lambda: vars(page).update(waiting_step=6, waiting_image=1))
    assert not waits(told)
    poller.poll(())
    assert waits(told) == [events.SlotWanted(0, 6, 1)]


def test_a_step_given_up_amid_a_poll_is_told_with_the_next():
    """By then what the rank staged of it before is told: nothing more of it will come."""
    poller, page, arena, told = watched()
    poll_amid(poller, arena, lambda: vars(page).update(given_up_step=5))
    assert not any(isinstance(e, events.RankGaveUp) for e in told)
    poller.poll(())
    assert told[-1] == events.RankGaveUp(0, CheckpointId(1, 5))
