"""One process's ties to its node's agent: the attachment, the pages, the slots dealt to it."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from holdfast.config import Settings
from holdfast.errors import AgentError, CapacityError, ClosedError, DeadlineError, HoldfastError
from holdfast.units import format_bytes
from holdfast.wire import messages
from holdfast.wire.client import AgentClient, Attachment
from holdfast.wire.pages import (
    PAGE_BYTES,
    LetGo,
    MappedFile,
    RunPage,
    SlotPage,
    SlotState,
    TrainerPage,
    populate,
    process_start,
)
from holdfast.wire.spawn import SOCKET, ensure_agent, spawn_agent

T = TypeVar("T")
_CALL_S = 60.0
_CALL_TRIES = 4
_DEAL_POLL_S = 0.02
_JOIN_POLL_S = 0.02
_SLOT_POLL_S = 0.0005
_RESPAWN_S = 5.0
_QUIET = 10
"""Training leaves an agent alone that did not answer within `slot_wait_s`: for so many times as long."""


@dataclass(slots=True)
class TrainerSlot:
    """A slot as the trainer maps it. `faulted` says that writing it costs no page fault."""

    number: int
    file: MappedFile
    page: SlotPage
    faulted: bool = False

    def room(self, size_bytes: int) -> memoryview:
        return self.file.buffer[PAGE_BYTES : PAGE_BYTES + size_bytes]

    @property
    def capacity_bytes(self) -> int:
        return self.file.size_bytes - PAGE_BYTES


class Session:
    """Attachment of one rank of one launch.

    Invariants: a slot's page is written only while it is FREE and dealt to this rank, or FILLING by us.
    Threads: `take`, `ensure` and `prepare` from the training thread; `ask` from any; faulting has a daemon thread.
    """

    def __init__(self, settings: Settings, *, launch: str, rank: int, world_size: int) -> None:
        self.settings = settings
        self.launch = launch
        self.rank = rank
        self.world_size = world_size
        self._slots: dict[int, TrainerSlot] = {}
        self._mine: list[int] = []
        self._asked: messages.Prepare | None = None
        self._mapping = threading.Lock()
        self._faulting: threading.Thread | None = None
        self._closing = threading.Event()
        self._fault_error: HoldfastError | None = None
        self._reviving_until = 0.0
        self._quiet_until = 0.0
        self._owes_prepare = False
        self._pages: list[MappedFile] = []
        self._join(lambda client: self._attach(client, self._patience_s))

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
        return self.settings.busy_wait_s + _CALL_S

    def _attach(self, client: AgentClient, limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
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
        answer = client.post("/launch", launch, messages.LaunchAnswer, timeout_s=limit_s)
        arena = self.settings.arena
        pages = [MappedFile(arena / answer.trainer_page), MappedFile(arena / answer.run_page)]
        try:
            self.attachment = Attachment(arena / SOCKET, self.rank, _left_s(deadline))
        except HoldfastError:
            for file in pages:
                file.close()
            raise
        self.client = client
        self.page = TrainerPage(pages[0].buffer)
        self.run_page = RunPage(pages[1].buffer)
        self._pages += pages

    def ensure(self) -> bool:
        """Look whether the agent lives; if not, start another and attach as soon as it answers.

        Training waits for this: `slot_wait_s` at most, for an agent that is there and does not answer; and then no
        more for ten times as long.

        Returns: whether an agent is attached now.
        """
        if self.attachment.alive and not self._owes_prepare:
            return True
        now = time.monotonic()
        if now < self._quiet_until:
            return False
        if not self.attachment.alive and now >= self._reviving_until:
            self._reviving_until = now + _RESPAWN_S
            spawn_agent(self.settings)
        with self._in_training():
            self._reattach(self.settings.slot_wait_s)
            return True
        return False

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
        if self.closed:
            raise ClosedError("this Checkpointer is closed", hint="look with `holdfast ls URL`, or make a new one")
        if not self.attachment.alive or self._owes_prepare:
            self._join(lambda client: self._reattach(self._patience_s))

    def _reattach(self, limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        if not self.attachment.alive:
            self._attach_anew(limit_s)
        if (asked := self._asked) is not None:
            # The agent before may have died with slots not dealt yet; this one does not know who asked for them.
            self._owes_prepare = True
            try:
                answer = self.client.post("/prepare", asked, messages.PrepareAnswer, timeout_s=_left_s(deadline))
            except CapacityError:
                self._owes_prepare = False
                raise
            self._dealt(asked, answer)

    def _attach_anew(self, limit_s: float) -> None:
        # The words that only this process knows must survive the new page.
        old = self.page
        current, waiting, saves, stall_ns = old.current_step, old.waiting_step, old.saves, old.stall_ns
        attempt, signal = old.attempt, old.stop_signal
        old_files, self._pages = self._pages, []
        old_pages = (old, self.run_page)
        self.attachment.close()
        try:
            self._attach(AgentClient(self.settings.arena / SOCKET), limit_s)
        except HoldfastError:
            self._pages = old_files
            raise
        for page in old_pages:
            page.release()
        for file in old_files:
            file.close()
        self.page.current_step, self.page.saves, self.page.stall_ns = current, saves, stall_ns
        self.page.attempt, self.page.stop_signal, self.page.waiting_step = attempt, signal, waiting
        with self._mapping:
            # The agent before may have freed the memory: what we still map of it is nobody's.
            for number in [n for n, slot in self._slots.items() if slot.file.stale]:
                del self._slots[number]

    @property
    def closed(self) -> bool:
        """Whether this session let go of the agent; it never starts another then."""
        return self._closing.is_set()

    def ask(self, path: str, answer: type[T], *, timeout_s: float = _CALL_S, query: dict[str, object]) -> T:
        """A GET that survives the agent's death: its successor is asked."""
        return self._survive(lambda: self.client.get(path, answer, timeout_s=timeout_s, **query))

    def glance(self, path: str, answer: type[T], *, query: dict[str, object]) -> T | None:
        """A GET from within training: None when the agent does not answer within `slot_wait_s`, or did not lately."""
        if time.monotonic() >= self._quiet_until:
            with self._in_training():
                return self.client.get(path, answer, timeout_s=self.settings.slot_wait_s, **query)
        return None

    def tell(self, path: str, body: object, answer: type[T], *, timeout_s: float = _CALL_S) -> T:
        """A POST that survives the agent's death. Every POST of the protocol may be said twice."""
        return self._survive(lambda: self.client.post(path, body, answer, timeout_s=timeout_s))

    def _survive(self, call: Callable[[], T]) -> T:
        """`call()`, again with the next agent when this one is gone or going.

        A dying agent drops the call before its listening socket: so the attachment is given up first, whatever it says.
        """
        for _ in range(_CALL_TRIES - 1):
            try:
                return call()
            except AgentError:
                self.attachment.close()
                self.revive()
        return call()

    # -- slots --------------------------------------------------------------------------------------------------------
    def prepare(self, image_bytes: int) -> None:
        """Have slots dealt for images of this size; mapping and faulting go on in the background.

        Raises: CapacityError with the sum when they cannot fit.
        """
        body = messages.Prepare(self.rank, image_bytes)
        self._dealt(body, self.tell("/prepare", body, messages.PrepareAnswer))

    def _dealt(self, asked: messages.Prepare, answer: messages.PrepareAnswer) -> None:
        self._asked, self._mine, self._owes_prepare = asked, answer.slots, False
        self._fault_error = None
        if self._faulting is None or not self._faulting.is_alive():
            self._faulting = threading.Thread(target=self._fault, name="holdfast-fault", daemon=True)
            self._faulting.start()

    def _fault(self) -> None:
        """Map and fault every slot as soon as the agent has dealt it; the list may change meanwhile."""
        try:
            while (number := next((n for n in self._mine if not self._is_faulted(n)), None)) is not None:
                slot = self.slot(number)
                if slot.page.dealt_rank != self.rank and slot.page.state == SlotState.FREE:
                    if self._closing.wait(_DEAL_POLL_S):
                        return
                else:
                    populate(slot.file.buffer)
                    slot.faulted = True
        except HoldfastError as e:
            self._fault_error = e

    def _is_faulted(self, number: int) -> bool:
        return number in self._slots and self._slots[number].faulted

    def faulted(self) -> bool:
        """Whether every dealt slot is mapped and faulted here."""
        return all(self._is_faulted(n) for n in self._mine)

    def slot(self, number: int) -> TrainerSlot:
        """The slot, mapped once per process."""
        with self._mapping:
            if number not in self._slots:
                file = MappedFile(self.settings.arena / f"slot-{number:05d}")
                self._slots[number] = TrainerSlot(number, file, SlotPage(file.buffer))
            return self._slots[number]

    def take(self, step: int, image_bytes: int, *, patience_s: float = 0.0) -> TrainerSlot | None:
        """A free slot of ours, now FILLING; None when none came free in time (the step is then dropped).

        Args:
            patience_s: wait so long for one, if that is longer than usual, through the death of an agent, too.

        Raises: CapacityError when the image outgrew every slot and no larger one fits.
        """
        slot = self._free(image_bytes)
        if slot is None:
            self._grow(image_bytes)
            slot = self._wait_free(step, image_bytes, patience_s)
        if slot is not None:
            self._begin(slot)
        return slot

    def _free(self, image_bytes: int) -> TrainerSlot | None:
        """A dealt, free, large enough slot; a faulted one first."""
        found = None
        for number in self._mine:
            slot = self._slots.get(number)
            if slot is None or slot.page.state != SlotState.FREE or slot.page.dealt_rank != self.rank:
                continue
            if slot.capacity_bytes >= image_bytes:
                if slot.faulted:
                    return slot
                found = found or slot
        return found

    def _grow(self, image_bytes: int) -> None:
        """Ask for larger slots, unless some slot of ours is known to hold such an image once it is free.

        What was asked for counts, not what is mapped: the slots of the last answer may still be under way.
        """
        known = (self._slots[n].capacity_bytes for n in self._mine if n in self._slots)
        asked_bytes = self._asked.image_bytes if self._asked is not None else -1
        if image_bytes > max(asked_bytes, *known, -1):
            try:
                self.prepare(image_bytes)
            except CapacityError as e:
                size = format_bytes(image_bytes)
                e.message = f"the image of rank {self.rank} is {size} now and outgrew its slots: {e.message}"
                raise

    def _wait_free(self, step: int, image_bytes: int, patience_s: float) -> TrainerSlot | None:
        self.page.waiting_step = step
        try:
            return self._poll(lambda: self._free(image_bytes), patience_s)
        finally:
            self.page.waiting_step = -1

    def _poll(self, look: Callable[[], TrainerSlot | None], patience_s: float) -> TrainerSlot | None:
        """Twice `slot_wait_s` (the second half is the agent's, after it marked tiers lagging); until then the
        preparation of the arena has its own, longer, limit."""
        began = time.monotonic()
        limit_s = max(2 * self.settings.slot_wait_s, patience_s)
        deadline = began + limit_s
        while True:
            slot = look()
            if slot is not None:
                return slot
            if self._fault_error is not None:
                raise self._fault_error
            now = time.monotonic()
            preparing = not any(n in self._slots and self._slots[n].page.dealt_rank == self.rank for n in self._mine)
            if preparing:
                deadline = now + limit_s
                if now - began > self.settings.prepare_timeout_s:
                    raise DeadlineError(
                        f"no slot of the arena was ready after {self.settings.prepare_timeout_s:g} s",
                        hint=f"look into {self.settings.arena / 'agent.log'}",
                    )
            alive = self.attachment.alive
            if now > deadline or not (alive or patience_s):
                return None
            if not alive:
                self.ensure()
            time.sleep(_SLOT_POLL_S if alive else _JOIN_POLL_S)

    def _begin(self, slot: TrainerSlot) -> None:
        """free -> filling: who fills goes first, so that the agent can tell a dead filler."""
        page = slot.page
        page.owner_pid, page.owner_start = os.getpid(), self.page.start
        page.generation += 1
        page.state = SlotState.FILLING

    def give_back(self, slot: TrainerSlot) -> None:
        """filling -> free: what was begun will not be finished."""
        slot.page.state = SlotState.FREE

    # -- the end ------------------------------------------------------------------------------------------------------
    def detach(self, how: LetGo = LetGo.LEFT) -> None:
        """Let go: memory stays with the agent. Idempotent."""
        if self._closing.is_set():
            return
        self._closing.set()
        self.page.let_go = how
        self.attachment.close()
        if self._faulting is not None:
            self._faulting.join(timeout=30.0)
        for slot in self._slots.values():
            slot.page.release()
            slot.file.close()
        for page in (self.page, self.run_page):
            page.release()
        for file in self._pages:
            file.close()


def _left_s(deadline: float) -> float:
    """What is left until then, and at least a moment: nothing can be asked in no time."""
    return max(0.01, deadline - time.monotonic())
