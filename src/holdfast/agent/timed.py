"""The agent's side of "save at S", for tiers that are due by time.

A step S a few steps ahead is published on the run page with the tiers it is for. Nobody waits for it: a rank that reads
it before it has passed S saves the first step from S on; one that reads it later objects and does not, and that step is
then given up for all, quietly. The agent takes a longer lead and publishes another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

from holdfast.model.place import TierRule
from holdfast.policy.schedule import due_mask, names_of_mask, overdue_tiers
from holdfast.wire.pages import ProposalState, RunPage, TrainerPage, barrier

_LEAST_LEAD = 2
_LONGEST_LEAD = 4096
_POLLS_AHEAD = 2
_FADING = 0.8
"""How much of the quickest progress seen counts one poll later."""


class TimedSaves:
    """Invariants: one proposal at a time; it is over once every rank has passed its step, or one objected; a nonce is
    published after what it is about.

    Threads: the agent's event loop only.
    """

    def __init__(self, page: RunPage, clock: Callable[[], float]) -> None:
        self._page = page
        self._clock = clock
        self._since_s: dict[str, float] = {}
        self._newest = -1
        """The step of the rank that is furthest."""
        self._proposed_at = -1
        self._pace = 0.0
        """Steps per poll."""
        self._caution = 1
        if page.save_state == ProposalState.PROPOSED:
            page.save_state = ProposalState.WITHDRAWN  # of an agent before: what it knew is lost

    def reset(self) -> None:
        """A new launch begins: nothing is proposed, and its clocks begin with its first save."""
        self._page.save_state = ProposalState.NONE
        self._page.save_nonce = 0
        self._since_s.clear()
        self._newest, self._pace, self._caution = -1, 0.0, 1

    def saved(self, due: Collection[str]) -> None:
        """These tiers got a step: their time counts from now."""
        for name in due:
            self._since_s[name] = self._clock()

    def poll(self, trainers: Sequence[TrainerPage], rules: Sequence[TierRule], *, complete: bool) -> None:
        """Look at all pages once; `complete` says that every rank of the launch is attached.

        Nothing is proposed before every rank has an attempt: the first save is a collective, which a rank that read
        too late would miss.
        """
        if not any(r.every_s is not None for r in rules):
            return
        if not (complete and trainers and all(t.attempt and t.current_step >= 0 for t in trainers)):
            self._newest = -1
            return
        self._look(max(t.current_step for t in trainers))
        if self._page.save_state == ProposalState.PROPOSED:
            self._watch(trainers, rules)
        elif due := overdue_tiers(rules, self._since(rules), self._clock()):
            self._propose(due_mask(due, rules))

    def _since(self, rules: Sequence[TierRule]) -> dict[str, float]:
        """An agent that knows of no save yet, as after another's death, counts from when it came."""
        for rule in rules:
            self._since_s.setdefault(rule.name, self._clock())
        return self._since_s

    def _look(self, newest: int) -> None:
        progress = newest - self._newest if self._newest >= 0 else 0
        self._pace = max(float(progress), _FADING * self._pace)
        self._newest = newest

    def _propose(self, mask: int) -> None:
        page = self._page
        lead = (_LEAST_LEAD + math.ceil(_POLLS_AHEAD * self._pace)) * self._caution
        self._proposed_at = self._newest
        page.save_step, page.save_mask = self._newest + min(lead, _LONGEST_LEAD), mask
        page.save_state = ProposalState.PROPOSED
        barrier()
        page.save_nonce = page.save_nonce + 1

    def _watch(self, trainers: Sequence[TrainerPage], rules: Sequence[TierRule]) -> None:
        page, nonce = self._page, self._page.save_nonce
        if any(t.save_nack == nonce for t in trainers):
            page.save_state = ProposalState.WITHDRAWN
            self._caution = min(2 * self._caution, _LONGEST_LEAD)
        elif self._newest < self._proposed_at:
            page.save_state = ProposalState.WITHDRAWN  # the run went back
        elif all(t.save_ack == nonce and t.current_step >= page.save_step for t in trainers):
            page.save_state = ProposalState.SETTLED
            self._caution = max(1, self._caution // 2)
            # Whatever became of it: a step that found no slot is not tried again at once.
            self.saved(names_of_mask(page.save_mask, rules))
