"""The end of a run on this node: ranks close, the run machine flushes and promotes, the agent answers and leaves."""

from __future__ import annotations

import asyncio
import logging

from holdfast.agent.executor import Executor
from holdfast.agent.host import Host
from holdfast.agent.launches import Launches
from holdfast.agent.poller import Poller
from holdfast.errors import RankGoneError, RunBusyError
from holdfast.lifecycle import events
from holdfast.wire import messages

log = logging.getLogger("holdfast.agent")

_POLL_S = 0.02
_LINGER_S = 5.0


class Closing:
    """Invariant: memory is freed only after an end without error.

    Threads: the agent's event loop.
    """

    def __init__(self, host: Host, executor: Executor, launches: Launches, poller: Poller) -> None:
        self._host = host
        self._executor = executor
        self._launches = launches
        self._poller = poller
        self._end: tuple[str, events.Error | None] | None = None
        self._ends = 0
        self._detaching = False
        self.free_memory = False

    def reset(self) -> None:
        """A launch began: nothing has ended."""
        self._end = None
        self._detaching = False
        self.free_memory = False

    def ended(self, reason: str, error: events.Error | None, *, free: bool) -> None:
        """The run machine says that the agent is needed no more, or (with an error) that it could not end well."""
        log.info("end: %s%s", reason, f" ({error['message']})" if error else "")
        self._end = (reason, error)
        self._ends += 1
        self.free_memory = free
        if reason == "terminated" or (error is None and reason != "closed"):
            self._host.leave()
        elif error is None:
            self._host.later(self._leave_when_detached(self._end))
        elif not self._launches.anyone_alive:
            # Nobody waits for an answer any more: go on as when trainers go without a word.
            self._executor.tell_run(events.TrainersGone())

    async def _leave_when_detached(self, end: tuple[str, events.Error | None]) -> None:
        """Every rank must hear the answer first: they let go of their attachment when they have."""
        for _ in range(round(_LINGER_S / _POLL_S)):
            if not any(t.attached for t in self._launches.trainers.values()):
                break
            await asyncio.sleep(_POLL_S)
        if self._end is end:
            self._host.leave()

    async def close_rank(self, body: messages.Close) -> messages.ClosedAnswer:
        """One rank is done; when all are, flush, promote, free. Idempotent: asked again, what failed is tried again.

        With a rank that left without closing this only detaches: flush, promote, keep the memory for the restart.
        """
        trainer = self._launches.trainers.get(body.rank)
        if trainer is not None:
            trainer.closed, trainer.discard = True, body.discard
        failed_before = self._ends if self._end is not None and self._end[1] is not None else -1
        if self._launches.all_closed and not self.ended_well:
            discard = all(t.discard for t in self._launches.trainers.values())
            # What a rank staged just before it closed was not told yet.
            self._poller.poll(self._host.settings.tiers)
            self._executor.tell_run(events.CloseAsked(discard))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + body.wait_s
        while (answer := self._answer(body.discard, failed_before)) is None:
            if loop.time() > deadline:
                return messages.ClosedAnswer(False, self._waiting_for())
            await asyncio.sleep(_POLL_S)
        return answer

    @property
    def ended_well(self) -> bool:
        """Whether the run machine needs this agent no more, and nothing failed."""
        return self._end is not None and self._end[1] is None

    def _answer(self, discard: bool, failed_before: int) -> messages.ClosedAnswer | None:
        """What came of a close; None while that is not known. Failures of an earlier call do not count."""
        if self._end is not None and self._ends != failed_before:
            error = self._end[1]
            return messages.ClosedAnswer(error is None, error=dict(error) if error else None)
        left = self._launches.left
        if not left or self._launches.open:
            return None
        if discard:
            return messages.ClosedAnswer(True)
        if not self._detaching:
            self._detaching = True
            self._poller.poll(self._host.settings.tiers)
            self._executor.tell_run(events.TrainersGone())
        if self._executor.run.waiting_for():
            return None
        return messages.ClosedAnswer(False, error=self._rank_gone(left).to_dict())

    def _rank_gone(self, left: list[int]) -> RankGoneError:
        run = self._executor.run
        newest, insecure = run.newest_whole(), run.insecure()
        if insecure is not None and newest is not None:
            state = f"step {newest.step} is in memory only: {insecure['message']}"
        elif newest is not None:
            state = f"what was due is flushed, step {newest.step} is durable"
        else:
            state = "no whole step is in memory"
        return RankGoneError(
            f"rank {', '.join(map(str, left))} left without closing; {state}",
            hint="look for that rank's first error; the memory stays with the agent for the next start of the job",
            step=newest.step if newest is not None else None,
        )

    def _waiting_for(self) -> str:
        absent = self._launches.open
        if absent:
            return f"rank {', '.join(map(str, absent))} to close"
        return self._executor.run.waiting_for()

    async def stop(self, body: messages.Stop) -> messages.Ok:
        """End the agent by hand. Raises: RunBusyError while trainers live."""
        if self._launches.anyone_alive:
            raise RunBusyError("trainers are attached", hint="end the job first")
        if body.discard:
            self._executor.tell_run(events.CloseAsked(True))
        else:
            self._host.terminate()
        return messages.Ok()
