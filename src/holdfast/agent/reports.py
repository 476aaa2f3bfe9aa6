"""Errors behind the training loop, kept for status and for the trainers' next save."""

from __future__ import annotations

import logging
import time
from collections import deque

from holdfast.lifecycle import events
from holdfast.wire import messages
from holdfast.wire.pages import RunPage

log = logging.getLogger("holdfast.agent")

_KEPT = 100


class Reports:
    """Invariant: the run page counts every error; the newest are kept.

    Threads: the agent's event loop only.
    """

    def __init__(self, run_page: RunPage) -> None:
        self._run_page = run_page
        self._errors: deque[tuple[int, float, events.Error]] = deque(maxlen=_KEPT)
        """Number, Unix time, error."""

    def add(self, error: events.Error) -> None:
        """Keep an error, and log it."""
        log.error("%s", error.get("message"))
        self._run_page.errors += 1
        self._errors.append((self._run_page.errors, time.time(), error))

    def kept(self) -> list[tuple[float, events.Error]]:
        """Those there are, oldest first, with the Unix time of each."""
        return [(at_s, error) for _, at_s, error in self._errors]

    def since(self, number: int, fatal: events.Error | None) -> messages.ErrorList:
        """Those that came after `number`; `fatal` is the one that ends training, if there is one."""
        news = [dict(e) for n, _, e in self._errors if n > number]
        return messages.ErrorList(self._run_page.errors, news, dict(fatal) if fatal else None)
