"""What a save says of what went wrong behind the loop before it."""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

from holdfast.trainer.plan import StagePlan
from holdfast.trainer.ranks import Ranks
from holdfast.trainer.saves import Saves
from holdfast.wire import messages

pytestmark = pytest.mark.torch


class Agent:
    """A session with an agent that had errors, and counts them on its run page."""

    def __init__(self):
        self.begin()

    def begin(self):
        """Another agent, which found no arena."""
        self.run_page = SimpleNamespace(superseded_by=0, errors=0)
        self._errors: list[str] = []

    def fail(self, *errors):
        self._errors += errors
        self.run_page.errors += len(errors)

    def glance(self, path, answer, *, query):
        news: list[dict[str, object]] = [{"kind": "tier", "message": e} for e in self._errors[query["since"] :]]
        return messages.ErrorList(len(self._errors), news, None)


def warned(saves):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        saves.report_background_errors()
    return [str(w.message).partition(": ")[2] for w in caught]


def test_each_error_is_warned_of_once_also_those_of_an_agent_that_counts_anew():
    ranks = Ranks(None, 1.0)
    agent: Any = Agent()
    saves = Saves(agent, ranks, StagePlan("run7", ranks))
    assert warned(saves) == []
    agent.fail("one", "two", "three")
    assert warned(saves) == ["one", "two", "three"]
    assert warned(saves) == []
    agent.begin()
    agent.fail("four")
    assert warned(saves) == ["four"]
    agent.begin()
    assert warned(saves) == []
    agent.fail("five")
    assert warned(saves) == ["five"]
    agent.begin()
    agent.fail("six", "seven", "eight")
    assert warned(saves) == ["six", "seven", "eight"], "also where it has counted past those before"
