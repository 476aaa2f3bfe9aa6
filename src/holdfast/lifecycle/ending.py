"""The run machine's part about the end: bring the newest whole step to a tier that outlives the node, then let go.

| goal | from | ends when |
|---|---|---|
| closing | every rank closed | all due flushes are settled, the newest whole step is durable (or nowhere: error) |
| detached | no trainer lives | as closing, and idle for `idle_s`; while not durable it is tried again every `idle_s` |
| terminating | SIGTERM | the newest whole step is durable (or nowhere: error), or the grace is over (error) |

A close that failed becomes detached when no trainer lives to ask again.
"""

from __future__ import annotations

from enum import Enum

from holdfast.errors import AgentError, DeadlineError
from holdfast.lifecycle import actions, events
from holdfast.lifecycle.book import TierBook
from holdfast.lifecycle.progress import Progress
from holdfast.lifecycle.steps import OPEN, StepRecord, TierState
from holdfast.model.identity import CheckpointId
from holdfast.policy.schedule import durable_order

IDLE, GRACE = "idle", "grace"


class Goal(Enum):
    """What the run machine works towards; None while trainers train."""

    NONE = ""
    DETACHED = "idle"
    CLOSING = "closed"
    TERMINATING = "terminated"


class Ending:
    """Invariants: `Ended` is wanted once per goal, again only when that is set anew; a step is promoted once per tier
    and try.

    Threads: none.
    """

    def __init__(self, progress: Progress, idle_s: float) -> None:
        self._p = progress
        self._ledger = progress.ledger
        self.idle_s = idle_s
        self._goal = Goal.NONE
        self._tried: set[tuple[str, CheckpointId]] = set()
        self._ended = False
        self._failed = False
        self._idle_over = False

    # -- goals --------------------------------------------------------------------------------------------------------
    def trainers_gone(self) -> None:
        """Nobody stages anything more, and nobody said that the memory may go."""
        self._ledger.everyone_gone = True
        self._p.drop_incomplete()
        self._p.delete_passed()
        if self._goal is Goal.NONE or (self._goal is Goal.CLOSING and self._failed):
            self._begin(Goal.DETACHED)
            self._p.do(actions.StartTimer(IDLE, self.idle_s))

    def trainers_back(self) -> None:
        """A launch attached: nothing ends, unless the agent was told to."""
        self._ledger.everyone_gone = False
        self._ledger.gone.clear()
        self._ledger.at.clear()
        if self._goal is not Goal.TERMINATING:
            self._p.do(actions.StopTimer(IDLE))
            self._begin(Goal.NONE)

    def close(self, discard: bool) -> None:
        """Every rank closed."""
        self._ledger.everyone_gone = True
        self._p.drop_incomplete()
        self._p.delete_passed()
        if self._goal is Goal.TERMINATING:
            return
        self._p.do(actions.StopTimer(IDLE))
        self._begin(Goal.CLOSING)
        if discard:
            self._let_go()

    def term(self, grace_s: float) -> None:
        """The agent has to end soon."""
        if self._goal is not Goal.TERMINATING:
            self._begin(Goal.TERMINATING)
            self._p.do(actions.StartTimer(GRACE, grace_s))

    def _begin(self, goal: Goal) -> None:
        self._goal = goal
        self._idle_over = self._ended = self._failed = False
        self._tried.clear()

    def timer_fired(self, timer: str) -> None:
        """Idle for long enough, or out of grace."""
        if timer == GRACE and self._goal is Goal.TERMINATING and not self._ended:
            error = DeadlineError(f"out of grace while waiting for {self.waiting_for() or 'nothing'}")
            self._end(error.to_dict())
        elif timer == IDLE and self._goal is Goal.DETACHED:
            self._idle_over = True
            if self.insecure() is not None:
                # Also while its flush is under way: that may fail yet, and nobody would ask again.
                if self._secure() is not None:
                    self._tried.clear()
                self._p.do(actions.StartTimer(IDLE, self.idle_s))

    # -- after every event --------------------------------------------------------------------------------------------
    def settle(self) -> None:
        """Promote what has to be, and end when there is nothing left to wait for."""
        if self._goal is Goal.NONE or self._ended:
            return
        error = self._secure()
        if self.waiting_for():
            return
        if error is None and (self._goal is not Goal.DETACHED or self._idle_over):
            if self._goal is Goal.TERMINATING:
                self._end(None)
            else:
                self._let_go()
        elif error is not None and self._goal is not Goal.DETACHED:
            self._end(error)

    def waiting_for(self) -> str:
        """What the end waits for, in words; empty when nothing."""
        forming = [r.id for r in self._ledger.records.values() if r.forming and r.world_size]
        if forming:
            return f"{min(forming)} to become whole"
        moving = self._moving()
        if moving:
            return moving
        if self._goal is Goal.TERMINATING:
            return ""
        deleting = sorted(n for n, b in self._ledger.books.items() if b.deleting)
        return f"deletions on {', '.join(deleting)}" if deleting else ""

    def _moving(self) -> str:
        """The flushes the goal waits for: all that are due, or (terminating) those of the newest whole step."""
        if not self._ledger.owner:
            return ""
        for checkpoint in sorted(self._ledger.records):
            record = self._ledger.records[checkpoint]
            if record.open_tiers and (self._goal is not Goal.TERMINATING or self._insecure(record)):
                return f"{checkpoint} on {', '.join(record.open_tiers)}"
        newest = self._newest()
        if newest is not None and self._waits_for_sweep(newest):
            return f"{newest.id} to be promoted"
        return ""

    def _insecure(self, record: StepRecord) -> bool:
        return record is self._newest() and not self._durable(record)

    # -- durable ------------------------------------------------------------------------------------------------------
    def _newest(self) -> StepRecord | None:
        """The step to make durable; what another attempt superseded is worth nothing any more."""
        return None if self._ledger.superseded else self._ledger.newest_whole()

    def _durable(self, record: StepRecord) -> bool:
        """Whether this step, or a later one of the lineage, stands on a tier that outlives the node."""
        return any(self._stands(record, self._ledger.books[r.name]) for r in durable_order(self._ledger.rules))

    def _stands(self, record: StepRecord, book: TierBook) -> bool:
        if any(c == record.id or (c > record.id and self._ledger.on_lineage(c)) for c in book.standing):
            return True
        progress = record.tiers.get(book.rule.name)
        # A tier that cannot be listed: the slots' pages said that it has the step.
        return not book.listed and progress is not None and progress.state is TierState.COMMITTED

    def _waits_for_sweep(self, record: StepRecord) -> bool:
        if self._durable(record):
            return False
        books = [self._ledger.books[r.name] for r in durable_order(self._ledger.rules)]
        return any(b.going(record.id) and record.id not in b.doomed for b in books)

    def _secure(self) -> events.Error | None:
        """Have the newest whole step made durable, on the fastest shared tier first; an error when nothing is left
        to try."""
        newest = self._newest()
        if newest is None or self._durable(newest):
            return None
        if not self._ledger.owner:
            return self.insecure()
        for rule in durable_order(self._ledger.rules):
            book, progress = self._ledger.books[rule.name], newest.tiers.get(rule.name)
            if book.forgotten(newest.id):
                continue
            if book.going(newest.id):
                return None
            tried = (rule.name, newest.id) in self._tried
            if not tried:
                self._promote(newest, rule.name)
                return None
            if progress is not None and progress.state in OPEN:
                return None
        return self.insecure()

    def insecure(self) -> events.Error | None:
        """Why the newest whole step is not durable; None when it is, or there is none."""
        newest = self._newest()
        if newest is None or self._durable(newest):
            return None
        if not self._ledger.owner:
            return AgentError("the attempt could not be determined, so nothing can be committed").to_dict()
        errors = [p.error for p in newest.tiers.values() if p.error is not None]
        return errors[-1] if errors else AgentError(f"no tier can take {newest.id}").to_dict()

    def _promote(self, record: StepRecord, tier: str) -> None:
        self._tried.add((tier, record.id))
        progress = record.tiers.get(tier)
        if progress is None or progress.state not in OPEN:
            self._ledger.sharing.begin(record, tier)
            self._ledger.unsettled.add(record.id)
        elif progress.state is TierState.COMMITTING:
            return
        self._p.to_nodes(events.Promote(tier, record.id))
        self._p.changed(record)

    # -- over ---------------------------------------------------------------------------------------------------------
    def _end(self, error: events.Error | None, *, free: bool = False) -> None:
        self._ended, self._failed = True, error is not None
        self._p.do(actions.Ended(self._goal.value, error, free))

    def _let_go(self) -> None:
        """Nothing in memory is needed any more."""
        error = AgentError("the run was closed before this", hint="closed with discard").to_dict()
        for record in self._ledger.records.values():
            for tier in record.open_tiers:
                if record.tiers[tier].state is not TierState.COMMITTING:
                    self._p.close_tier(record, tier, TierState.DROPPED, error)
        self._p.to_nodes(events.FreeAll())
        self._end(None, free=True)
