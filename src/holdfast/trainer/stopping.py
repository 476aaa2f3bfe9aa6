"""Stop together: a signal to any rank, or a deadline, makes all ranks stop after the same saved step. Fail together:
with `on_save_error`, what went wrong behind the loop is raised on all ranks at the same step.

The protocol is in docs/design/0001: the agent proposes a step on the run page, every rank acknowledges or objects on
its own page, and a settled proposal is a fact for all. No collective, no message.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from holdfast.errors import HoldfastError, from_dict
from holdfast.trainer.session import Session
from holdfast.wire import messages
from holdfast.wire.pages import ProposalKind, ProposalState, barrier

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_POLL_S = 0.001
_NO_NEWS = 2**62


class Stopping:
    """One rank's part of the agreement.

    Threads: `observe` and `install` from the training thread; the signal handler only sets a word.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._signalled = 0
        self._previous: dict[int, Any] = {}
        self._pid = os.getpid()
        self._stop_step: int | None = None
        self._last = -1

    def install(self) -> None:
        """Take SIGTERM and SIGUSR1, keeping what was there; only from the main thread (Python's rule)."""
        if self._previous or threading.current_thread() is not threading.main_thread():
            return
        self._pid = os.getpid()
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._on_signal)

    def uninstall(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._previous.items():
                if signal.getsignal(number) == self._on_signal:
                    self._restore(number, handler)
            self._previous.clear()

    def _restore(self, number: int, handler: Any) -> None:
        signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # A forked child, such as a data loader's worker, has our handler and our pages: the signal means it alone.
            self._restore(number, self._previous.get(number))
            os.kill(os.getpid(), number)
            return
        self._signalled = number
        self._session.page.stop_signal = number
        previous = self._previous.get(number)
        if callable(previous):
            previous(number, frame)

    def observe(self, step: int) -> bool:
        """Called in `save(step)` after the step was published: whether training stops after this step.

        Raises: on all ranks at this step the error of a save for which training is to end.
        """
        if self._signalled:
            # Again: a new agent's page does not know yet.
            self._session.page.stop_signal = self._signalled
        nonce = self._session.run_page.proposal_nonce
        agreed = nonce and nonce != self._session.page.proposal_done
        if agreed and self._answer(step, nonce) and self._settled(step, nonce):
            # Read anew: while it was settled the agent may have died, and its page with it.
            if self._session.run_page.proposal_kind == ProposalKind.RAISE:
                self._last = step
                self._session.page.proposal_done = nonce
                raise self._fatal()
            self._stop_step = step
        elif self._signalled and self._session.world_size == 1 and not self._session.attachment.alive:
            # Alone, nobody is to be asked.
            self._stop_step = step
        self._last = step
        return self._stop_step == step

    def _fatal(self) -> HoldfastError:
        """What went wrong. An agent that came since knows only that something did."""
        told = self._session.ask("/errors", messages.ErrorList, query={"since": _NO_NEWS}).fatal
        setting = self._session.settings.on_save_error
        why = f"raised on all ranks: on_save_error is {setting!r}; the newest durable step is kept for the restart"
        if told is None:
            return HoldfastError("saves failed behind the training loop", hint=f"look into the agent's log; {why}")
        hint = told.get("hint")
        return from_dict({**told, "hint": f"{hint}; {why}" if hint else why})

    def _answer(self, step: int, nonce: int) -> bool:
        """Acknowledge the proposal, or object to one that came too late; whether it is about this very step."""
        page, run = self._session.page, self._session.run_page
        proposed = run.proposal_step
        if nonce not in (page.proposal_ack, page.proposal_nack):
            barrier()
            if self._last < proposed:
                page.proposal_ack = nonce
            else:
                page.proposal_nack = nonce
        # The first step saved from the proposed one on: not every step need be saved, but all ranks save the same.
        return proposed <= step and page.proposal_ack == nonce

    def _settled(self, step: int, nonce: int) -> bool:
        """Wait, bounded, until the proposal about this step is settled or withdrawn; if the agent dies, by the next."""
        session = self._session
        deadline = time.monotonic() + session.settings.stop_wait_s
        while (run := session.run_page).proposal_nonce == nonce:
            page = session.page  # both are others after an agent died
            if run.proposal_state == ProposalState.SETTLED:
                return True
            if run.proposal_state == ProposalState.WITHDRAWN:
                return False
            if not session.attachment.alive:
                if session.world_size == 1:
                    return False
                session.ensure()
            if time.monotonic() > deadline:
                if page.proposal_nack == nonce:
                    # The agent answers neither: it hangs. Whoever did see it settle stops; the launcher ends the rest.
                    return False
                # Object: unless it settles this instant, nobody stops at this step.
                page.proposal_nack = nonce
                deadline = time.monotonic() + session.settings.stop_wait_s
            time.sleep(_POLL_S)
        return False

    @property
    def reached(self) -> bool:
        return self._stop_step is not None
