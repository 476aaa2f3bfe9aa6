"""The slots dealt to one rank, as its process maps them: faulted ahead, taken one per save."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from holdfast.config import Settings
from holdfast.errors import CapacityError, DeadlineError, HoldfastError
from holdfast.units import format_bytes
from holdfast.wire.mapped import MappedFile, populate
from holdfast.wire.pages import PAGE_BYTES, SlotPage, SlotState, TrainerPage

_DEAL_POLL_S = 0.02
_SLOT_POLL_S = 0.0005
_AGENT_POLL_S = 0.02


@dataclass(slots=True)
class TrainerSlot:
    """A slot as the trainer maps it. `faulted` says that writing it costs no page fault."""

    number: int
    file: MappedFile
    page: SlotPage
    faulted: bool = False
    unlock: Callable[[], None] | None = None
    """Lets go of pages that were locked for a device."""

    def let_go(self) -> None:
        """Unmap it: the page locks first, a device must not keep what is no longer mapped."""
        if self.unlock is not None:
            self.unlock()
            self.unlock = None
        self.page.release()
        self.file.close()

    def room(self, size_bytes: int) -> memoryview:
        return self.file.buffer[PAGE_BYTES : PAGE_BYTES + size_bytes]

    @property
    def capacity_bytes(self) -> int:
        return self.file.size_bytes - PAGE_BYTES


class Ties(Protocol):
    """What slots need of the session they belong to."""

    rank: int
    page: TrainerPage

    @property
    def alive(self) -> bool:
        """Whether an agent is attached."""

    def ensure(self) -> bool:
        """Have an agent attached if that is quick."""

    def prepare(self, image_bytes: int, shared_bytes: int) -> None:
        """Have slots of these sizes dealt, by number of the image. Raises: CapacityError."""


class Slots:
    """Invariant: a slot's page is written only while it is FREE and dealt to this rank, or FILLING by us.

    Threads: the training thread; faulting has a daemon thread of its own.
    """

    def __init__(self, session: Ties, settings: Settings) -> None:
        self._session = session
        self._settings = settings
        self._slots: dict[int, TrainerSlot] = {}
        self._mine: list[int] = []
        self._asked_bytes = (-1, -1)
        self._mapping = threading.Lock()
        self._faulting: threading.Thread | None = None
        self._busy: int | None = None
        """The slot that is faulted just now."""
        self._owes_drop = False
        self._closing = threading.Event()
        self._fault_error: HoldfastError | None = None
        self.page_lock: Callable[[memoryview], Callable[[], None]] | None = None
        """How pages are locked for a device, once per slot and process; None: they are not."""
        self.unmapped = 0
        """How often slots were let go of: whoever keeps views of them does so, too, or their memory is never free."""

    # -- mapped and faulted -------------------------------------------------------------------------------------------
    def dealt(self, numbers: list[int], image_bytes: int, shared_bytes: int = 0) -> None:
        """These slots are ours, or will be, for images of those sizes: map and fault them in the background."""
        with self._mapping:
            self._mine, self._asked_bytes = numbers, (image_bytes, shared_bytes)
            self._fault_error = None
            self._drop_others()
            if self._faulting is None:  # else it goes on with these
                thread = threading.Thread(target=self._fault, name="holdfast-fault", daemon=True)
                thread.start()
                self._faulting = thread

    def _fault(self) -> None:
        """Map and fault every slot as soon as the agent has dealt it; the list may change meanwhile."""
        while True:
            with self._mapping:
                mine = self._mine
                number = self._busy = next((n for n in mine if not self._is_faulted(n)), None)
                if number is None or self._closing.is_set():
                    self._faulting = self._busy = None  # with the lock: what is dealt from now on gets another thread
                    return
            try:
                self._fault_one(number)
            except Exception as e:
                with self._mapping:
                    if mine is self._mine:  # else the agent may have removed a slot that it no longer deals
                        self._fault_error, self._faulting, self._busy = _as_ours(number, e), None, None
                        return

    def _fault_one(self, number: int) -> None:
        """Map and fault a slot, or wait a moment where it is not dealt yet."""
        slot = self.slot(number)
        if slot.page.dealt_rank != self._session.rank and slot.page.state == SlotState.FREE:
            self._closing.wait(_DEAL_POLL_S)
            return
        populate(slot.file.buffer)
        if self.page_lock is not None and slot.unlock is None:
            slot.unlock = self.page_lock(slot.file.buffer)
        slot.faulted = True

    def _is_faulted(self, number: int) -> bool:
        slot = self._slots.get(number)
        return slot is not None and slot.faulted and (self.page_lock is None or slot.unlock is not None)

    def faulted(self) -> bool:
        """Whether every dealt slot is mapped and faulted here."""
        return all(self._is_faulted(n) for n in self._mine)

    def has(self, slot: TrainerSlot) -> bool:
        """Whether the slot is still mapped, and that of an agent that lives."""
        return self._slots.get(slot.number) is slot

    def slot(self, number: int) -> TrainerSlot:
        """The slot, mapped once per process."""
        with self._mapping:
            if number not in self._slots:
                file = MappedFile(self._settings.arena / f"slot-{number:05d}")
                self._slots[number] = TrainerSlot(number, file, SlotPage(file.buffer))
            return self._slots[number]

    def _drop_others(self) -> None:
        """Unmap what is not ours, or not any more: the agent may have removed it, and gets its room back only so. What
        is faulted or filled just now goes with a later save. With the lock."""
        filling = {n: s.page for n, s in self._slots.items() if s.page.state == SlotState.FILLING}
        used = {n for n, page in filling.items() if page.owner_pid == os.getpid()} | {self._busy}
        others = self._slots.keys() - {*self._mine, *used}
        self._owes_drop = not used <= {*self._mine, None}
        for number in others:
            self._slots.pop(number).let_go()
        self.unmapped += bool(others)

    def drop_stale(self) -> None:
        """Another agent: the one before may have freed the memory, and what we still map of it is nobody's."""
        with self._mapping:
            stale = [n for n, slot in self._slots.items() if slot.file.stale]
            for number in stale:
                slot = self._slots.pop(number)
                if slot.unlock is not None:
                    slot.unlock()
            self.unmapped += bool(stale)

    # -- taken --------------------------------------------------------------------------------------------------------
    def take(self, step: int, image_bytes: int, *, image: int = 0, patience_s: float = 0.0) -> TrainerSlot | None:
        """A free slot of ours, now FILLING; None when none came free in time (the step is then dropped).

        Args:
            image: for which of our images.
            patience_s: wait so long for one, if that is longer than usual, through the death of an agent, too.

        Raises: CapacityError when the image outgrew every slot and no larger one fits.
        """
        if self._owes_drop:
            with self._mapping:
                self._drop_others()
        slot = self._take_free(image_bytes, image)
        if slot is not None:
            return slot
        self._grow(image_bytes, image)
        return self._wait_free(step, image_bytes, image, patience_s)

    def _take_free(self, image_bytes: int, image: int) -> TrainerSlot | None:
        """A free slot, now FILLING: with the lock, for a thread that attaches anew may be dealt others just then."""
        with self._mapping:
            if (slot := self._free(image_bytes, image)) is not None:
                self._begin(slot)
            return slot

    def _free(self, image_bytes: int, image: int) -> TrainerSlot | None:
        """A dealt, free, large enough slot; a faulted one first."""
        found = None
        for number in self._mine:
            slot = self._slots.get(number)
            if slot is None or slot.page.state != SlotState.FREE or not self._is_dealt(slot, image):
                continue
            if slot.capacity_bytes >= image_bytes:
                if slot.faulted:
                    return slot
                found = found or slot
        return found

    def _is_dealt(self, slot: TrainerSlot, image: int) -> bool:
        return slot.page.dealt_rank == self._session.rank and slot.page.dealt_image == image

    def _grow(self, image_bytes: int, image: int) -> None:
        """Ask for larger slots, unless some slot of ours is known to hold such an image once it is free.

        What was asked for counts, not what is mapped: the slots of the last answer may still be under way.
        """
        mine = (self._slots.get(n) for n in self._mine)
        known = [s.capacity_bytes for s in mine if s is not None and s.page.dealt_image == image]
        if image_bytes > max(self._asked_bytes[image], *known, -1):
            sizes = [image_bytes if n == image else max(0, asked) for n, asked in enumerate(self._asked_bytes)]
            try:
                self._session.prepare(*sizes)
            except CapacityError as e:
                size = format_bytes(image_bytes)
                e.message = f"the image of rank {self._session.rank} is {size} now and outgrew its slots: {e.message}"
                raise

    def _wait_free(self, step: int, image_bytes: int, image: int, patience_s: float) -> TrainerSlot | None:
        self._session.page.waiting_image = image
        self._session.page.waiting_step = step
        try:
            return self._poll(lambda: self._take_free(image_bytes, image), image, patience_s)
        finally:
            self._session.page.waiting_step = -1

    def _poll(self, look: Callable[[], TrainerSlot | None], image: int, patience_s: float) -> TrainerSlot | None:
        """Twice `slot_wait_s` (the second half is the agent's, after it marked tiers lagging); until then the
        preparation of the arena has its own, longer, limit."""
        began = time.monotonic()
        limit_s = max(2 * self._settings.slot_wait_s, patience_s)
        deadline = began + limit_s
        while True:
            slot = look()
            if slot is not None:
                return slot
            if self._fault_error is not None:
                raise self._fault_error.with_traceback(None)  # it would remember every save that raised it
            now = time.monotonic()
            if self._preparing(image):
                deadline = now + limit_s
                if now - began > self._settings.prepare_timeout_s:
                    raise DeadlineError(
                        f"no slot of the arena was ready after {self._settings.prepare_timeout_s:g} s",
                        hint=f"look into {self._settings.arena / 'agent.log'}",
                    )
            alive = self._session.alive
            if now > deadline or not (alive or patience_s):
                return None
            if not alive:
                self._session.ensure()
            time.sleep(_SLOT_POLL_S if alive else _AGENT_POLL_S)

    def _preparing(self, image: int) -> bool:
        """Whether no slot was dealt to us yet."""
        mine = (self._slots.get(n) for n in self._mine)
        return not any(slot is not None and self._is_dealt(slot, image) for slot in mine)

    def _begin(self, slot: TrainerSlot) -> None:
        """free -> filling: who fills goes first, so that the agent can tell a dead filler."""
        page = slot.page
        page.owner_pid, page.owner_start = os.getpid(), self._session.page.start
        page.generation += 1
        page.state = SlotState.FILLING

    def give_back(self, slot: TrainerSlot) -> None:
        """filling -> free: what was begun will not be finished. What was handed to the agent is its own."""
        if slot.page.state == SlotState.FILLING:
            slot.page.state = SlotState.FREE

    def close(self) -> None:
        """Let go of the memory; it stays with the agent."""
        self._closing.set()
        thread = self._faulting
        if thread is not None:
            thread.join(timeout=30.0)
        for slot in self._slots.values():
            slot.let_go()


def _as_ours(number: int, error: Exception) -> HoldfastError:
    if isinstance(error, HoldfastError):
        return error
    ours = HoldfastError(
        f"slot {number} of the arena cannot be made ready: {type(error).__name__}: {error}",
        hint="mend the cause and restart the job, or report it",
    )
    ours.__cause__ = error
    return ours
