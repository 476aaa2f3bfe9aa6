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


def test_a_step_given_up_amid_a_poll_is_told_with_the_next():
    """By then what the rank staged of it before is told: nothing more of it will come."""
    poller, page, arena, told = watched()

    class Slots(dict):
        def values(self):
            page.given_up_step = 5
            return super().values()

    arena.slots = Slots()
    poller.poll(())
    assert not any(isinstance(e, events.RankGaveUp) for e in told)
    poller.poll(())
    assert told[-1] == events.RankGaveUp(0, CheckpointId(1, 5))
