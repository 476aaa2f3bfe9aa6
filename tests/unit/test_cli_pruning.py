"""`prune` through the live agent: how it watches what it asked for."""

from types import SimpleNamespace
from typing import Any

import pytest

from holdfast.cli import pruning
from holdfast.cli.output import Bar
from holdfast.errors import NotFoundError, TierError, TierFullError
from holdfast.model.identity import CheckpointId
from holdfast.policy.retention import Reason
from holdfast.store.prune import Deletion, PrunePlan
from holdfast.wire.messages import ErrorList

GONE = CheckpointId(1, 10)


class Home:
    """The manifest of the step goes after so many looks."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def size(self, key: str) -> int:
        self.looks -= 1
        if self.looks < 0:
            raise NotFoundError("gone")
        return 1

    def list(self, prefix: str) -> Any:
        return iter(())


class Agent:
    """Has reported some errors, and reports others once it is asked to prune."""

    def __init__(self, before: list[dict[str, object]], meanwhile: list[dict[str, object]]) -> None:
        self.errors, self.meanwhile = before, meanwhile

    def get(self, path: str, kind: type, *, timeout_s: float, since: int) -> ErrorList:
        return ErrorList(len(self.errors), self.errors[since:])

    def post(self, path: str, body: Any, kind: type, *, timeout_s: float) -> None:
        self.errors = self.errors + self.meanwhile


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(pruning, "_POLL_S", 0.0)


def prune(home: Home, meanwhile: list[dict[str, object]]) -> None:
    agent = Agent([TierError("long ago", step=GONE.step).to_dict()], meanwhile)
    run: Any = SimpleNamespace(home=home, owning_agent=agent, settings=SimpleNamespace(close_timeout_s=20.0))
    plan = PrunePlan("posix", (Deletion(GONE, Reason.ASKED, (), 1, drop_tombstone=False),), ())
    pruning.delete(run, pruning.Intent(plan), Bar())


def test_a_flush_of_another_step_that_fails_meanwhile_is_not_its_error():
    home = Home(2)
    prune(home, [TierFullError("no room", step=70).to_dict()])
    assert home.looks < 0


@pytest.mark.parametrize("step", [10, None])
def test_what_the_agent_reports_of_the_step_or_of_all_of_it_is_raised(step):
    with pytest.raises(TierError, match="it may stay"):
        prune(Home(100), [TierFullError("no room", step=70).to_dict(), TierError("it may stay", step=step).to_dict()])
