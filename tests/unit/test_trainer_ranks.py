"""What goes wrong on one rank is heard of by all, and ends a load there and then."""

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from holdfast.errors import DeadlineError, HoldfastError, LoadError, UsageError  # noqa: E402
from holdfast.model.identity import CheckpointId, ImageId  # noqa: E402
from holdfast.trainer.load import Loader  # noqa: E402
from holdfast.trainer.noted import note  # noqa: E402
from holdfast.trainer.plan import StagePlan  # noqa: E402
from holdfast.trainer.ranks import Ranks, Talk  # noqa: E402
from holdfast.trainer.saves import Saves, Wanted  # noqa: E402
from holdfast.wire import messages  # noqa: E402

pytestmark = pytest.mark.torch


class Heard(Talk):
    """One rank; `told` is what others would be told by it."""

    def __init__(self) -> None:
        super().__init__(None, 0, 1)
        self.told: list[Any] = []

    def gather(self, value):
        self.told.append(value)
        return [value]

    @property
    def last_error(self):
        return self.told[-1][1]


def test_a_layout_that_fails_on_one_rank_is_heard_of():
    talk = Heard()
    with pytest.raises(UsageError, match="cannot be the name of a tensor"):
        StagePlan("run7", Ranks(None, 1.0)).learn({"x" * 5000: torch.zeros(1)}, talk)
    assert isinstance(talk.last_error, UsageError)


def test_metrics_that_are_none_are_heard_of_before_an_attempt_is_claimed():
    talk = Heard()
    told: list[str] = []
    ranks: Any = SimpleNamespace(rank=0, size=1, talk=lambda: contextlib.nullcontext(talk))
    session: Any = SimpleNamespace(tell=lambda path, *more: told.append(path))
    saves = Saves(session, ranks, StagePlan("run7", ranks))
    wanted = Wanted(1, frozenset({"memory"}), frozenset(), lambda: note({"loss": "low"}))
    with pytest.raises(UsageError, match="'loss' is no number"):
        saves.make({"x": torch.zeros(1)}, wanted, began=0.0, patience_s=0.0)
    assert isinstance(talk.last_error, UsageError)
    assert told == []


# Loads ---------------------------------------------------------------------------------------------------------------
class Agent:
    """A session with an agent that has two steps, of one image each, and answers a fetch as it is told to."""

    def __init__(self, fetched, slot=None):
        self.rank = 0
        self.settings = SimpleNamespace(load_timeout_s=5.0)
        self.slots = SimpleNamespace(slot=slot)
        self.asked: list[int] = []
        self._fetched = fetched

    def ask(self, path, answer, *, timeout_s, query):
        steps = [s for s in (20, 10) if s < query.get("below_step", 99)]
        return messages.Loadable(CheckpointId(1, steps[0]) if steps else None, False, [])

    def tell(self, path, body, answer, **options):
        if path == "/place":
            return messages.Place(None)
        if path != "/fetch":
            return messages.Ok()
        self.asked.append(body.checkpoint.step)
        return self._fetched(body)


def load(agent):
    """Load with that agent; the error, and what others would be told last."""
    talk = Heard()
    ranks: Any = SimpleNamespace(talk=lambda: contextlib.nullcontext(talk))
    with pytest.raises(Exception) as caught:  # which one is looked at by the caller
        Loader(agent, ranks).load({}, step=None, strict=True)
    return caught.value, talk.last_error


def refuse(error):
    def fetched(body):
        raise error

    return fetched


def test_a_step_that_the_agent_cannot_bring_gives_way_to_the_next_older_one():
    agent = Agent(refuse(LoadError("no copy is left")))
    error, _ = load(agent)
    assert isinstance(error, LoadError)
    assert agent.asked == [20, 10]


def test_an_agent_that_does_not_answer_is_no_reason_to_go_back():
    agent = Agent(refuse(DeadlineError("the agent did not answer within 5 s")))
    error, told = load(agent)
    assert isinstance(error, DeadlineError)
    assert isinstance(told, DeadlineError)
    assert agent.asked == [20]


def test_what_goes_wrong_while_images_are_opened_is_heard_of():
    def fetched(body):
        return messages.FetchAnswer([messages.FetchedImage(ImageId(1, 20, 0, 0), 3, 1, 4096, 0, "memory")])

    def slot(number):
        raise OSError("too many open files")

    error, told = load(Agent(fetched, slot))
    assert isinstance(error, OSError)
    assert type(told) is HoldfastError
    assert "too many open files" in told.message
