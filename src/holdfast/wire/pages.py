"""Pages: the words in shared memory through which trainers and agent speak while training runs.

A page is 4096 bytes of little-endian 64-bit words. Each word has exactly one writer at any time; a write is one
aligned 8-byte store, so a reader sees the old value or the new one. Who writes what:

- slot page: the trainer while the slot is FREE (if it is dealt to it) or FILLING, the agent while STAGED or HELD,
  and while FREE and not dealt;
- trainer page: its trainer; run page: the agent.

A trainer sets STAGED last, after `barrier()`; the agent reads the state first.
"""

from __future__ import annotations

import contextlib
import threading
from enum import IntEnum
from pathlib import Path

PAGE_BYTES = 4096
_VERSION = 0
_FENCE = threading.Lock()


def barrier() -> None:
    """A full memory barrier: everything stored before is visible before anything stored after.

    Why twice: one release may be passed by later stores on weakly ordered processors; a release followed by an
    acquire may not.
    """
    for _ in range(2):
        with _FENCE:
            pass


class SlotState(IntEnum):
    """free -> filling -> staged (trainer), staged -> held -> free (agent)."""

    FREE = 0
    FILLING = 1
    STAGED = 2
    HELD = 3


class Page:
    """One mapped page. Subclasses name the words.

    Args:
        buffer: at least 4096 writable bytes, 8-byte aligned.
    """

    MAGIC = 0

    def __init__(self, buffer: memoryview) -> None:
        self._bytes = buffer[:PAGE_BYTES]
        self.words = self._bytes.cast("Q")

    def initialise(self) -> None:
        """Zero the page and put magic and version."""
        self._bytes[:] = bytes(PAGE_BYTES)
        self.words[1] = _VERSION
        self.words[0] = self.MAGIC

    @property
    def valid(self) -> bool:
        return self.words[0] == self.MAGIC and self.words[1] == _VERSION

    def release(self) -> None:
        """Let go of the buffer, so that its mapping can be closed."""
        self.words.release()
        self._bytes.release()


class _Word:
    """A named word of a page; `optional` ones store value + 1, so that 0 means none, which reads as -1."""

    def __init__(self, index: int, *, optional: bool = False) -> None:
        self.index = index
        self.optional = optional

    def __get__(self, page: Page, owner: type[Page]) -> int:
        value = page.words[self.index]
        return value - 1 if self.optional else value

    def __set__(self, page: Page, value: int) -> None:
        page.words[self.index] = value + 1 if self.optional else value


class SlotPage(Page):
    """The page in front of each slot. Optional words read -1 for none."""

    MAGIC = int.from_bytes(b"HFSLOT\0\0", "little")
    generation = _Word(2)
    state = _Word(3)
    dealt_rank = _Word(4, optional=True)
    attempt = _Word(5)
    step = _Word(6, optional=True)
    due_mask = _Word(7)
    timed_mask = _Word(8)
    """Tiers of the due mask that are due by time alone, as the agent said beforehand."""
    image_bytes = _Word(9)
    rank = _Word(10, optional=True)
    world_size = _Word(11)
    image = _Word(12)
    image_count = _Word(13)
    owner_pid = _Word(14)
    owner_start = _Word(15)
    crc64nvme = _Word(16)
    committed_mask = _Word(19)
    dealt_image = _Word(24)
    relies_on_step = _Word(25, optional=True)

    @property
    def state_name(self) -> str:
        """The state as a word; a page that lies says its number."""
        state = self.state
        return SlotState(state).name.lower() if state in list(SlotState) else str(state)


def copy_page(path: Path) -> memoryview | None:
    """A copy of the page that a file begins with; None when the file is gone or too short."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        data = bytearray(file.read(PAGE_BYTES))
        return memoryview(data) if len(data) == PAGE_BYTES else None
    return None


def slot_page(path: Path) -> SlotPage | None:
    """A copy of a slot's page, looked at from outside; None when the file is gone or no slot."""
    data = copy_page(path)
    page = SlotPage(data) if data is not None else None
    return page if page is not None and page.valid else None


class LetGo(IntEnum):
    """How a trainer let go of its agent: by an exception or without a word, or after it had closed."""

    NO = 0
    LEFT = 1
    CLOSED = 2


class TrainerPage(Page):
    """What one rank says of itself."""

    MAGIC = int.from_bytes(b"HFTRAIN\0", "little")
    launch_hi = _Word(2)
    launch_lo = _Word(3)
    pid = _Word(4)
    start = _Word(5)
    rank = _Word(6)
    world_size = _Word(7)
    current_step = _Word(8, optional=True)
    given_up_step = _Word(9, optional=True)
    waiting_step = _Word(10, optional=True)
    stop_signal = _Word(11)
    proposal_ack = _Word(12)
    proposal_nack = _Word(13)
    attempt = _Word(14)
    saves = _Word(15)
    stall_ns = _Word(16)
    stall_last_ns = _Word(17)
    let_go = _Word(18)
    proposal_done = _Word(19)
    """The settled proposal that this rank has acted on."""
    save_ack = _Word(20)
    save_nack = _Word(21)
    waiting_image = _Word(28)


class ProposalKind(IntEnum):
    """What all ranks do after S: save it and stop, or raise what went wrong behind the loop."""

    STOP = 0
    RAISE = 1


class ProposalState(IntEnum):
    """Of "at S all ranks ...": proposed until every rank acknowledged it, then settled; or withdrawn."""

    NONE = 0
    PROPOSED = 1
    SETTLED = 2
    WITHDRAWN = 3


class RunPage(Page):
    """What the agent says to all ranks of the node."""

    MAGIC = int.from_bytes(b"HFRUN\0\0\0", "little")
    attempt = _Word(5)
    superseded_by = _Word(6)
    proposal_nonce = _Word(7)
    proposal_step = _Word(8, optional=True)
    proposal_state = _Word(9)
    errors = _Word(10)
    proposal_kind = _Word(13)
    save_nonce = _Word(14)
    """Of "save at S" for tiers that are due by time: never waited for, see agent/timed.py."""
    save_step = _Word(15, optional=True)
    save_mask = _Word(16)
    save_state = _Word(17)
