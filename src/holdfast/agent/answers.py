"""What became of steps, for whoever asks."""

from __future__ import annotations

import asyncio
import contextlib

from holdfast.agent.arena import Arena
from holdfast.agent.contents import Contents
from holdfast.agent.executor import Executor
from holdfast.agent.host import Host
from holdfast.agent.status import save_status, save_status_by_tiers, step_infos
from holdfast.model.identity import CheckpointId
from holdfast.wire import messages
from holdfast.wire.pages import SlotState


class Answers:
    """Threads: the agent's event loop; tiers are read in the shelf's pool."""

    def __init__(self, host: Host, executor: Executor, arena: Arena, contents: Contents) -> None:
        self._host = host
        self._executor = executor
        self._arena = arena
        self._contents = contents
        self._changed = asyncio.Condition()

    async def wake(self) -> None:
        """Something became of a step: whoever waits looks again."""
        async with self._changed:
            self._changed.notify_all()

    async def save_status(self, checkpoint: CheckpointId, *, targets: list[str], wait_s: float) -> messages.SaveStatus:
        """What became of a step; waits until a target is settled, or `wait_s`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        while True:
            status = await self._save_status(checkpoint)
            left_s = deadline - loop.time()
            if left_s <= 0 or status.settled or any(_settled(status, t) for t in targets):
                return status
            async with self._changed:
                # Not longer than a second: a step staged since the last poll is not announced by a change.
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), min(left_s, 1.0))

    async def _save_status(self, checkpoint: CheckpointId) -> messages.SaveStatus:
        """From the run machine, else from the slots not yet told, else from what is committed.

        Raises: TierError when a tier that may have the step cannot be looked at: it is not lost for that.
        """
        known = self._executor.run.status(checkpoint)
        if known is not None:
            return save_status(known)
        occupied = self._arena.find(SlotState.FILLING, SlotState.STAGED, SlotState.HELD)
        if any((s.page.attempt, s.page.step) == (checkpoint.attempt, checkpoint.step) for s in occupied):
            return messages.SaveStatus("staged", {})  # since the last poll
        view = await self._host.in_thread(self._contents.view)
        status = save_status_by_tiers(view, checkpoint)
        if status.memory == "lost" and view.unread:
            raise next(iter(view.unread.values()))
        return status

    async def step_infos(self) -> list[messages.StepInfo]:
        """Every step that exists anywhere, oldest first."""
        shelved = await self._host.in_thread(self._contents.view)
        return step_infos(shelved, self._executor.whole(), self._executor.held().values())


def _settled(status: messages.SaveStatus, target: str) -> bool:
    if target == "memory":
        return status.memory != "staged"
    state = status.tiers.get(target)
    return state is not None and state.state not in ("waiting", "flushing")
