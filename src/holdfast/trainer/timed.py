"""One rank's side of "save at S", for tiers that are due by time. See agent/timed.py."""

from __future__ import annotations

from holdfast.trainer.session import Session
from holdfast.wire.pages import ProposalState, barrier


class TimedSaves:
    """Invariants: a proposal is answered once; what was read before its step is saved once.

    Threads: the training thread. In steady state it reads one word.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._last = -1
        self._nonce = 0
        self._step = -1
        self._mask = 0

    def due(self, step: int) -> int:
        """The tiers due at this step by time, as a mask. Called once in every `save`, in order of steps."""
        if step < self._last:  # the run went back
            self._last, self._mask = -1, 0
        nonce = self._session.run_page.save_nonce
        page = self._session.page
        if nonce and nonce not in (page.save_ack, page.save_nack):
            self._answer(nonce)
        self._last = step
        if not self._mask or step < self._step:
            return 0
        mask, self._mask = self._mask, 0
        return mask if self._stands() else 0

    def _answer(self, nonce: int) -> None:
        """Acknowledge what is said early enough, or object."""
        page, run = self._session.page, self._session.run_page
        barrier()
        step, mask, state = run.save_step, run.save_mask, run.save_state
        barrier()
        if run.save_nonce != nonce or state == ProposalState.WITHDRAWN:
            return  # something else is being said: the next save reads it
        self._mask = 0
        if self._last < step:
            self._nonce, self._step, self._mask = nonce, step, mask
            page.save_ack = nonce
        else:
            page.save_nack = nonce

    def _stands(self) -> bool:
        """Whether what was acknowledged is still meant; if it is not, saving would only be in vain."""
        run = self._session.run_page
        return run.save_nonce == self._nonce and run.save_state != ProposalState.WITHDRAWN
