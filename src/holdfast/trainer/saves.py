"""The saves of one attempt: claim it, take a slot, stage, hand out handles."""

from __future__ import annotations

import time
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from holdfast.errors import HoldfastError, StepDroppedError, StepExistsError
from holdfast.model.identity import CheckpointId
from holdfast.policy.schedule import due_mask
from holdfast.trainer.claim import abandons, claim
from holdfast.trainer.handing import give_back, take
from holdfast.trainer.news import News, check_owner
from holdfast.trainer.plan import StagePlan
from holdfast.trainer.ranks import Ranks
from holdfast.trainer.save import Save
from holdfast.trainer.session import Session


@dataclass(frozen=True, slots=True)
class Wanted:
    """A step to be saved, the tiers it is due on, those of them by time alone, and what gives rank 0's notes."""

    step: int
    due: frozenset[str]
    timed: frozenset[str]
    notes: Callable[[], bytes]


class Saves:
    """Invariants: steps go up within an attempt; only its first save is collective.

    Attributes:
        last_step: the newest step saved in this attempt; -1: none.
    Threads: the training thread.
    """

    def __init__(self, session: Session, ranks: Ranks, plan: StagePlan) -> None:
        self._session = session
        self._ranks = ranks
        self._plan = plan
        self._parent: CheckpointId | None = None
        self._attempt = 0
        self.last_step = -1
        self._news = News(session)
        self._handles: weakref.WeakSet[Save] = weakref.WeakSet()

    def stand_on(self, parent: CheckpointId | None) -> None:
        """A load: the next save begins a new attempt on what was loaded."""
        self._parent, self._attempt, self.last_step = parent, 0, -1
        page = self._session.page
        page.attempt, page.current_step, page.given_up_step = 0, -1, -1

    def check_order(self, step: int) -> None:
        """Raises: StepExistsError unless the step comes after those saved in this attempt."""
        if step <= self.last_step:
            raise _order_error(step, self.last_step, self._attempt)

    @property
    def first(self) -> bool:
        """Whether nothing was saved yet since the start, or since a load."""
        return not self._attempt

    def make(self, state: dict[str, Any], wanted: Wanted, *, began: float, patience_s: float) -> Save:
        """Save a step on the tiers that are due.

        Args:
            began: when the training loop began to wait, by `time.perf_counter`.
            patience_s: wait so long for a slot if none comes free in the usual time.

        Raises: see Checkpointer.save.
        """

        def look() -> bytes:
            self._plan.follow(state)
            return wanted.notes()

        notes = look() if self._attempt else self._claim(look)
        step, due = wanted.step, wanted.due
        self._plan.look_for_changes(self._session, self._attempt)
        slots = take(self._session.slots, step, self._plan.to_stage, patience_s)
        page = self._session.page
        self.last_step = step
        if slots is None:
            page.given_up_step = step
            error = _dropped(step, patience_s)
            warnings.warn(str(error), RuntimeWarning, stacklevel=3)
            return self._handle(step, due, began, error)
        try:
            self._plan.stage(
                slots,
                attempt=self._attempt,
                step=step,
                due_mask=self._mask(due),
                timed_mask=self._mask(wanted.timed),
                notes=notes,
            )
        except BaseException:
            # Also an interrupt: a slot left filling by a living process would be nobody's for ever.
            page.given_up_step = step
            give_back(self._session.slots, slots)
            raise
        return self._handle(step, due, began, None)

    def _handle(self, step: int, due: frozenset[str], began: float, dropped: HoldfastError | None) -> Save:
        stall_s = time.perf_counter() - began
        page = self._session.page
        page.saves += 1
        page.stall_last_ns = round(stall_s * 1e9)
        page.stall_ns += round(stall_s * 1e9)
        handle = Save(self._session, attempt=self._attempt, step=step, due=due, stall_s=stall_s, dropped=dropped)
        self._handles.add(handle)
        return handle

    def _mask(self, due: frozenset[str]) -> int:
        return due_mask(due, self._session.settings.tiers)

    def _claim(self, look: Callable[[], bytes]) -> bytes:
        """The first save after a start or a load: the one collective of a save.

        Returns: what `look` does, which is called on every rank: an error of one is raised on all.
        """
        with self._ranks.talk() as talk:
            notes = talk.each(look)[talk.rank]
            # Compared first: an attempt that saves nothing would only stand in front of what is there.
            unlike = self._plan.settle(talk)
            answer = talk.first(lambda: claim(self._session, self._parent))
        self._attempt = answer.attempt
        self._session.page.attempt = answer.attempt
        left = abandons(answer, self._session.settings.home) if self._ranks.rank == 0 else ""
        for warning in filter(None, (unlike, left)):
            # Only now: a warning that is made an error must not leave the other ranks alone in a collective.
            warnings.warn(warning, RuntimeWarning, stacklevel=4)
        return notes

    def report_background_errors(self) -> None:
        """Warn of what went wrong behind the loop since the last save; being superseded always raises."""
        check_owner(self._session, self._attempt)
        for error in self._news.take():
            warnings.warn(f"holdfast: {error}", RuntimeWarning, stacklevel=3)

    def keep_answers(self) -> None:
        """Have the handles remember what became of their steps."""
        for handle in list(self._handles):
            handle.keep_answer()


def _dropped(step: int, patience_s: float) -> StepDroppedError:
    if not patience_s:
        return StepDroppedError(
            "no slot came free in time, so this step was dropped",
            hint="a tier is too slow for its every_steps: save less often there, or raise HOLDFAST_SLOT_WAIT_S",
            step=step,
        )
    return StepDroppedError(
        f"no slot came free in {patience_s:g} s for the last step before the stop: training stops without saving it",
        hint="a restart loads an earlier step; look at the agent's log for a tier that hangs",
        step=step,
    )


def _order_error(step: int, last: int, attempt: int) -> HoldfastError:
    if step == last:
        return StepExistsError(
            f"step {step} was already saved in attempt {attempt}",
            hint="save each step once; a load starts anew",
            step=step,
        )
    return StepExistsError(
        f"step {step} comes after step {last} in attempt {attempt}",
        hint="steps go up within an attempt; call load(step=...) to go back",
        step=step,
    )
