"""The agent's side of stopping together: propose a step, watch acknowledgements, settle or withdraw.

One proposal at a time. It can only settle when every trainer acknowledged the same nonce, and a trainer acknowledges
only a step it has not passed; so "settled" means that all will save and stop after exactly that step.
"""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.wire.pages import ProposalState, RunPage, TrainerPage, barrier


class StopProposals:
    """Invariants: SETTLED never changes within a launch; a new nonce is published after its step.

    Threads: the agent's event loop only.
    """

    def __init__(self, page: RunPage) -> None:
        self._page = page
        self._lead = 1

    def reset(self) -> None:
        """A new launch begins: nothing is proposed."""
        self._page.proposal_state = ProposalState.NONE
        self._page.proposal_nonce = 0
        self._page.proposal_step = -1
        self._lead = 1

    def poll(self, trainers: Sequence[TrainerPage], *, complete: bool, stop: bool = False) -> None:
        """Look at all pages once; `complete` says that every rank of the launch is attached."""
        if self._page.proposal_state == ProposalState.SETTLED:
            return
        if self._page.proposal_state == ProposalState.PROPOSED:
            self._watch(trainers)
        elif complete and trainers and (stop or any(t.stop_signal for t in trainers)):
            self._propose(trainers)

    def _propose(self, trainers: Sequence[TrainerPage]) -> None:
        page = self._page
        page.proposal_step = max(t.current_step for t in trainers) + self._lead
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
