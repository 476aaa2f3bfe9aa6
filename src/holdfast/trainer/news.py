"""What went wrong behind the training loop, as it hears of it."""

from __future__ import annotations

from holdfast.errors import HoldfastError, SupersededError, from_dict
from holdfast.trainer.session import Session
from holdfast.wire import messages
from holdfast.wire.pages import RunPage


class News:
    """Invariant: an error is told once.

    Threads: one. In steady state it reads one word.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._page: RunPage | None = None
        self._told = 0

    def take(self) -> list[HoldfastError]:
        """The errors that were not told yet; none where the agent does not say them in time: it is asked again."""
        page = self._session.run_page
        if page is not self._page or page.errors < self._told:
            self._page, self._told = page, 0  # the memory of the one before is gone, and its count
        if page.errors == self._told:
            return []
        answer = self._session.glance("/errors", messages.ErrorList, query={"since": self._told})
        if answer is None:
            return []
        self._told = answer.last
        return [from_dict(error) for error in answer.errors]


def check_owner(session: Session, attempt: int) -> None:
    """Raises: SupersededError when a later attempt than ours (0: none yet) owns the run."""
    later = session.run_page.superseded_by
    if later > attempt > 0:
        raise SupersededError(
            f"attempt {later} owns the run now; this is attempt {attempt}",
            hint="another job of the same run was started; end this one",
        )
