"""What ties a rank to one agent: an attachment, and pages in files that are mapped."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from holdfast.errors import HoldfastError
from holdfast.wire import messages
from holdfast.wire.client import AgentClient, Attachment
from holdfast.wire.mapped import MappedFile
from holdfast.wire.pages import RunPage, TrainerPage
from holdfast.wire.spawn import SOCKET


@dataclass(frozen=True, slots=True)
class Tie:
    """What one agent gave; all of it is valid until `release`."""

    attachment: Attachment
    page: TrainerPage
    run_page: RunPage
    files: tuple[MappedFile, MappedFile]

    def go_on(self, old: TrainerPage) -> None:
        """Put down the words that only this process knows: they have to survive a new page."""
        new = self.page
        new.current_step, new.saves, new.stall_ns = old.current_step, old.saves, old.stall_ns
        new.attempt, new.stop_signal = old.attempt, old.stop_signal
        new.waiting_image, new.waiting_step = old.waiting_image, old.waiting_step

    def goes_on_after(self, before: Tie) -> bool:
        """Whether the agent found the run page of the one before: it goes on with what stands there."""
        return self.files[1].inode == before.files[1].inode  # that of a file still mapped belongs to no other

    def release(self) -> None:
        """Let go of everything."""
        self.attachment.close()
        self.page.release()
        self.run_page.release()
        for file in self.files:
            file.close()


def tie(client: AgentClient, launch: messages.Launch, *, arena: Path, limit_s: float) -> Tie:
    """Introduce a rank of a launch to the agent and attach to it.

    Raises: what the agent refuses with; AgentError when it is gone or going; DeadlineError.
    """
    deadline = time.monotonic() + limit_s
    answer = client.post("/launch", launch, messages.LaunchAnswer, timeout_s=limit_s)
    files = MappedFile(arena / answer.trainer_page), MappedFile(arena / answer.run_page)
    try:
        attachment = Attachment(arena / SOCKET, launch.rank, left_s(deadline))
    except HoldfastError:
        for file in files:
            file.close()
        raise
    return Tie(attachment, TrainerPage(files[0].buffer), RunPage(files[1].buffer), files)


def left_s(deadline: float) -> float:
    """What is left until then, and at least a moment: nothing can be asked in no time."""
    return max(0.01, deadline - time.monotonic())
