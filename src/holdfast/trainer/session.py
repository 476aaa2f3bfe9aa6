"""One process's ties to its node's agent: the attachment, the pages, the calls."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec

from holdfast.config import Settings
from holdfast.errors import AgentError, CapacityError, ClosedError, DeadlineError, HoldfastError, UsageError
from holdfast.trainer.slots import Slots
from holdfast.trainer.tie import Tie, left_s, tie
from holdfast.wire import messages
from holdfast.wire.client import AgentClient
from holdfast.wire.pages import LetGo
from holdfast.wire.processes import process_start
from holdfast.wire.spawn import SOCKET, ensure_agent, spawn_agent, starts

T = TypeVar("T")
_CALL_TRIES = 4
_JOIN_POLL_S = 0.02
_RESPAWN_S = 5.0
_QUIET = 10
"""Training leaves an agent alone that did not answer within `slot_wait_s`: for so many times as long."""


class Session:
    """Attachment of one rank of one launch.

    Attributes:
        slots: the slots dealt to the rank.
        page, run_page: what this rank says, and what the agent says to all. Another page after an agent died; another
            run page only if the memory went with it.

    Invariant: what an agent gave stays mapped until `detach`, for another thread may be about to use it.
    Threads: `ensure`, `prepare` and `detach` from the training thread; `ask` and `tell` from any. Whoever attaches
        anew holds the lock; training waits for it no longer than for an agent.
    """

    def __init__(self, settings: Settings, *, launch: str, rank: int, world_size: int) -> None:
        self.settings = settings
        self.launch = launch
        self.rank = rank
        self.world_size = world_size
        self._asked: messages.Prepare | None = None
        self._closed, self._how = False, LetGo.LEFT
        self._pid = os.getpid()
        self._reviving_until = 0.0
        self._quiet_until = 0.0
        self._owes_prepare = False
        self._attaching = threading.RLock()
        self._ties: list[Tie] = []
        self._join(lambda client: self._use(client, self._tie(client, self._patience_s)))
        self.slots = Slots(self, settings)

    # -- the attachment -----------------------------------------------------------------------------------------------
    def _join(self, attach: Callable[[AgentClient], None]) -> None:
        """Attach to the agent, or to the next one when the one that answers is on its way out."""
        deadline = time.monotonic() + self.settings.agent_start_timeout_s
        while True:
            client = ensure_agent(self.settings)
            try:
                return attach(client)
            except AgentError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_JOIN_POLL_S)

    @property
    def _patience_s(self) -> float:
        """How long an attachment may take where nothing else is to be done."""
        return self.settings.busy_wait_s + self.settings.call_timeout_s

    def _tie(self, client: AgentClient, limit_s: float) -> Tie:
        pid = os.getpid()
        launch = messages.Launch(
            launch=self.launch,
            rank=self.rank,
            world_size=self.world_size,
            pid=pid,
            start=process_start(pid),
            protocol=messages.PROTOCOL,
            settings=msgspec.to_builtins(self.settings),
        )
        return tie(client, launch, arena=self.settings.arena, limit_s=limit_s)

    def _use(self, client: AgentClient, made: Tie) -> None:
        goes_on = bool(self._ties) and made.goes_on_after(self._ties[-1])
        self._ties.append(made)
        self.client, self.page = client, made.page
        if not goes_on:
            self.run_page = made.run_page
        # Last: who sees it alive takes the pages for those of this agent.
        self.attachment = made.attachment

    def ensure(self) -> bool:
        """Look whether the agent lives; if not, start another and attach as soon as it answers.

        Training waits for this: `slot_wait_s` at most, for an agent that is there and does not answer; and then no
        more for ten times as long.

        Returns: whether an agent is attached now.
        """
        if self._settled:
            return True
        now = time.monotonic()
        if now < self._quiet_until:
            return False
        limit_s = self.settings.slot_wait_s
        with self._in_training(), self._alone(limit_s):
            if not self.attachment.alive and now >= self._reviving_until and not starts(self.settings.arena):
                self._reviving_until = now + _RESPAWN_S
                spawn_agent(self.settings)
            self._reattach(left_s(now + limit_s))
            return True
        return False

    @contextlib.contextmanager
    def _alone(self, limit_s: float) -> Iterator[None]:
        """The one thread that attaches anew. Raises: DeadlineError when another does so for longer."""
        if not self._attaching.acquire(timeout=limit_s):
            raise DeadlineError(
                f"another thread attaches to the agent for more than {limit_s:g} s",
                hint=f"look into {self.settings.arena / 'agent.log'}",
            )
        try:
            yield
        finally:
            if self._closed:
                self._release()
            self._attaching.release()

    @contextlib.contextmanager
    def _in_training(self) -> Iterator[None]:
        """What fails here does not matter to training; what took its whole time is left alone for a while."""
        try:
            yield
        except DeadlineError:
            self._quiet_until = time.monotonic() + _QUIET * self.settings.slot_wait_s
        except HoldfastError:
            pass

    def revive(self) -> None:
        """Like `ensure`, waiting for the new agent. Raises: DeadlineError; ClosedError after `detach`."""
        self._check_open()
        if not self._settled:
            self._join(self._revive)

    def _revive(self, client: AgentClient) -> None:
        with self._alone(self._patience_s):
            self._check_open()
            self._reattach(self._patience_s)

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedError("this Checkpointer is closed", hint="look with `holdfast ls URL`, or make a new one")

    @property
    def _settled(self) -> bool:
        """Whether an agent is attached that dealt what was asked for."""
        return self.attachment.alive and not self._owes_prepare

    def _reattach(self, limit_s: float) -> None:
        if self._settled:
            return  # another thread did it
        deadline = time.monotonic() + limit_s
        # The agent before may have died with slots not dealt yet; the next one does not know who asked for them.
        self._owes_prepare = self._asked is not None
        if not self.attachment.alive:
            self._attach_anew(limit_s)
        if (asked := self._asked) is not None:
            try:
                answer = self.client.post("/prepare", asked, messages.PrepareAnswer, timeout_s=left_s(deadline))
            except CapacityError:
                self._owes_prepare = False
                raise
            self._dealt(asked, answer)

    def _attach_anew(self, limit_s: float) -> None:
        self.attachment.close()
        client = AgentClient(self.settings.arena / SOCKET)
        made = self._tie(client, limit_s)
        made.go_on(self.page)
        self.slots.drop_stale()
        self._use(client, made)

    def check_process(self) -> None:
        """Raises: UsageError in a forked child, which has our pages in common with us."""
        if self._forked:
            raise UsageError(
                f"this Checkpointer belongs to process {self._pid}, not to its child {os.getpid()}",
                hint="use it in the process that made it only, not in workers that were forked",
            )

    @property
    def _forked(self) -> bool:
        return os.getpid() != self._pid

    @property
    def closed(self) -> bool:
        """Whether this session let go of the agent; it never starts another then."""
        return self._closed

    @property
    def alive(self) -> bool:
        """Whether an agent holds the other end of the attachment."""
        return self.attachment.alive

    def ask(self, path: str, answer: type[T], *, timeout_s: float | None = None, query: dict[str, object]) -> T:
        """A GET that survives the agent's death: its successor is asked. `timeout_s`: None is `call_timeout_s`."""
        limit_s = self.settings.call_timeout_s if timeout_s is None else timeout_s
        return self._survive(lambda: self.client.get(path, answer, timeout_s=limit_s, **query))

    def glance(self, path: str, answer: type[T], *, query: dict[str, object]) -> T | None:
        """A GET from within training: None when the agent does not answer within `slot_wait_s`, or did not lately."""
        if time.monotonic() >= self._quiet_until:
            with self._in_training():
                return self.client.get(path, answer, timeout_s=self.settings.slot_wait_s, **query)
        return None

    def tell(self, path: str, body: object, answer: type[T], *, timeout_s: float | None = None) -> T:
        """A POST that survives the agent's death. Every POST of the protocol may be said twice."""
        limit_s = self.settings.call_timeout_s if timeout_s is None else timeout_s
        return self._survive(lambda: self.client.post(path, body, answer, timeout_s=limit_s))

    def _survive(self, call: Callable[[], T]) -> T:
        """`call()`, again with the next agent when this one is gone or going.

        A dying agent drops the call before its listening socket: so the attachment is given up first, whatever it says.
        """
        self.check_process()
        for _ in range(_CALL_TRIES - 1):
            attachment = self.attachment
            try:
                return call()
            except AgentError:
                # That of the agent that was asked: another thread may have attached to the next one meanwhile.
                attachment.close()
                self.revive()
        return call()

    # -- slots --------------------------------------------------------------------------------------------------------
    def prepare(self, image_bytes: int, shared_bytes: int) -> None:
        """Have slots dealt for images of these sizes; mapping and faulting go on in the background.

        Raises: CapacityError with the sum when they cannot fit.
        """
        body = messages.Prepare(self.rank, image_bytes, shared_bytes)
        with self._alone(self._patience_s):
            self._dealt(body, self.tell("/prepare", body, messages.PrepareAnswer))

    def _dealt(self, asked: messages.Prepare, answer: messages.PrepareAnswer) -> None:
        self._asked, self._owes_prepare = asked, False
        self.slots.dealt([*answer.slots, *answer.shared_slots], asked.image_bytes, asked.shared_bytes)

    # -- the end ------------------------------------------------------------------------------------------------------
    def detach(self, how: LetGo = LetGo.LEFT) -> None:
        """Let go: memory stays with the agent. Idempotent. Does nothing in a forked child, for the pages are ours."""
        if self._closed or self._forked:
            return
        self._how, self._closed = how, True
        self.page.let_go = how
        self.attachment.close()
        # A thread that attaches just now lets go by itself, when it has.
        with contextlib.suppress(DeadlineError), self._alone(self.settings.slot_wait_s):
            pass

    def _release(self) -> None:
        if self._ties:
            self.page.let_go = self._how
            self.attachment.close()
            self.slots.close()
        while self._ties:
            self._ties.pop().release()
