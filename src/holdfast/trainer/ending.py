"""The end of a rank's part: what is due is waited for."""

from __future__ import annotations

import time

from holdfast.errors import DeadlineError, HoldfastError, from_dict
from holdfast.trainer.session import Session
from holdfast.wire import messages

_CLOSE_POLL_S = 5.0


def end(session: Session, *, discard: bool) -> HoldfastError | None:
    """Wait until the agent has flushed what is due, or (with `discard`) let it go.

    It is asked again and again: the call is idempotent and survives the agent's death.

    Returns: what went wrong; None when all ranks have ended well.
    Raises: DeadlineError after `close_timeout_s`.
    """
    limit_s = session.settings.close_timeout_s
    deadline = time.monotonic() + limit_s
    body = messages.Close(session.rank, discard, wait_s=_CLOSE_POLL_S)
    while True:
        answer = session.tell("/close", body, messages.ClosedAnswer)
        if answer.error is not None:
            return from_dict(answer.error)
        if answer.closed:
            return None
        if time.monotonic() > deadline:
            raise DeadlineError(
                f"not everything was flushed within {limit_s:g} s: {answer.waiting_for}",
                hint="the agent goes on flushing; look at `holdfast ls`, or raise HOLDFAST_CLOSE_TIMEOUT_S",
            )
