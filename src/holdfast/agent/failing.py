"""Failed saves that end training: counted as they settle, proposed to all ranks at one step."""

from __future__ import annotations

from holdfast.agent.stopping import Proposals
from holdfast.lifecycle import events
from holdfast.lifecycle.steps import StepStatus, outcomes_of
from holdfast.policy.failed_saves import FailedSaves


class Failing:
    """Threads: the agent's event loop only.

    Attributes:
        fatal: the error for which training is to end (`on_save_error`); None while there is none.
    """

    def __init__(self, proposals: Proposals) -> None:
        self._proposals = proposals
        self._failed = FailedSaves()
        self.fatal: events.Error | None = None

    def reset(self) -> None:
        """A new launch begins: it hears of its own failures only."""
        self._failed.begin_anew()
        self.fatal = None

    def look(self, status: StepStatus, limit: int) -> None:
        """What a step has come to; whether so much failed in a row at one place that training is to end (0: never)."""
        for place, error in outcomes_of(status).items():
            self._failed.note(status.checkpoint, place, failed=error is not None)
            if error is not None and self._failed.over(place, limit):
                self._failed.begin_anew()
                self.fatal = error
                self._proposals.fail()
