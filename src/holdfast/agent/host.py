"""What the agent does for each of its parts, which see nothing else of it but what they are given."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from holdfast.config import Settings
from holdfast.lifecycle import events

T = TypeVar("T")


class Host(Protocol):
    """Threads: the agent's event loop only."""

    settings: Settings
    """Of the launch that is attached; another one brings its own."""

    trainers_here: bool
    """Whether any lived when last looked at."""

    @property
    def ending(self) -> bool:
        """Whether no launch is let in any more."""

    def launch_begins(self) -> None:
        """Forget what was agreed and promised with the launch before."""

    def choose_cores(self) -> None:
        """Go where the setting says, as seen from the trainers that are attached now."""

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Run on the side, until the agent ends."""

    async def in_thread(self, work: Callable[..., T], *args: Any) -> T:
        """Run what blocks in a pool."""

    def reported(self, error: events.Error) -> None:
        """Keep an error for status and for the trainers' next save."""

    def attempt_claimed(self) -> None:
        """The launch owns an attempt now."""

    def mask_of(self, tier: str) -> int:
        """The tier's bit on pages."""

    def terminate(self) -> None:
        """Promote within the grace, then end."""

    def leave(self) -> None:
        """End."""
