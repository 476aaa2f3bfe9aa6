"""The agent's side of what all ranks do together: propose a step, watch acknowledgements, settle or withdraw.

One proposal at a time. It can only settle when every trainer acknowledged the same nonce, and a trainer acknowledges
only a step it has not passed; so "settled" means that all will act at exactly that step: save it and stop, or raise.
"""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.wire.pages import ProposalKind, ProposalState, RunPage, TrainerPage, barrier


class Proposals:
    """Invariants: a settled stop never changes within a launch, a settled raise once every rank has acted on it; a new
    nonce is published after what it is about.

    Threads: the agent's event loop only.
    """

    def __init__(self, page: RunPage) -> None:
        self._page = page
        self._lead = 1
        self._failing = False

    def reset(self) -> None:
        """A new launch begins: nothing is proposed."""
        self._page.proposal_state = ProposalState.NONE
        self._page.proposal_nonce = 0
        self._page.proposal_step = -1
        self._page.proposal_kind = ProposalKind.STOP
        self._lead = 1
        self._failing = False

    def fail(self) -> None:
        """All ranks are to raise, as soon as they can at one step."""
        self._failing = True

    def poll(self, trainers: Sequence[TrainerPage], *, complete: bool) -> None:
        """Look at all pages once; `complete` says that every rank of the launch is attached."""
        page = self._page
        if page.proposal_state == ProposalState.SETTLED:
            done = all(t.proposal_done == page.proposal_nonce for t in trainers)
            if page.proposal_kind == ProposalKind.RAISE and trainers and done:
                # Whoever caught it and goes on may be told of the next.
                page.proposal_state = ProposalState.NONE
            return
        if page.proposal_state == ProposalState.PROPOSED:
            self._watch(trainers)
        elif complete and trainers:
            if any(t.stop_signal for t in trainers):
                self._propose(trainers, ProposalKind.STOP)
            elif self._failing:
                self._propose(trainers, ProposalKind.RAISE)

    def _propose(self, trainers: Sequence[TrainerPage], kind: ProposalKind) -> None:
        page = self._page
        page.proposal_step = max(t.current_step for t in trainers) + self._lead
        page.proposal_kind = kind
        page.proposal_state = ProposalState.PROPOSED
        barrier()
        page.proposal_nonce = page.proposal_nonce + 1

    def _watch(self, trainers: Sequence[TrainerPage]) -> None:
        nonce = self._page.proposal_nonce
        if any(t.proposal_nack == nonce for t in trainers):
            # Somebody was past it already: aim further ahead.
            self._page.proposal_state = ProposalState.WITHDRAWN
            self._lead = min(2 * self._lead, 1024)
        elif all(t.proposal_ack == nonce for t in trainers):
            self._page.proposal_state = ProposalState.SETTLED
            self._failing = self._failing and self._page.proposal_kind != ProposalKind.RAISE
