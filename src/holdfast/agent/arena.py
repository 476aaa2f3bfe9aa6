"""The arena: the node's reused shared memory, one file per slot.

A slot is mapped, faulted once and reused for ever; what is in it survives trainers and agents. Room is promised by the
file system before a slot is dealt, so that a full one is an error at start and never a SIGBUS in training.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from holdfast.errors import CapacityError, HoldfastError
from holdfast.units import format_bytes
from holdfast.wire.mapped import MappedFile, populate
from holdfast.wire.pages import PAGE_BYTES, SlotPage, SlotState

_SLOT = "slot-"
_HINT = (
    "lower keep_last of the memory tier, raise HOLDFAST_ARENA_BUDGET_BYTES, or point HOLDFAST_ARENA_DIR at a larger "
    "memory file system (docker run --shm-size=..., an emptyDir of medium Memory in Kubernetes)"
)


@dataclass(slots=True)
class Slot:
    """One slot: its file, its page, whether its room is promised and faulted, which rank waits for that (-1: none) and
    for which of its images."""

    number: int
    file: MappedFile
    page: SlotPage
    ready: bool = False
    reserved_for: int = -1
    reserved_image: int = 0

    @property
    def for_image(self) -> int:
        """The number of the images it is for; of one that is free and dealt to nobody it says nothing."""
        if self.reserved_for >= 0:
            return self.reserved_image
        return self.page.dealt_image if self.page.dealt_rank >= 0 else self.page.image

    @property
    def capacity_bytes(self) -> int:
        return self.file.size_bytes - PAGE_BYTES

    @property
    def image(self) -> memoryview:
        """The image in the slot, as long as its page says."""
        return self.file.buffer[PAGE_BYTES : PAGE_BYTES + self.page.image_bytes]

    def room(self, size_bytes: int) -> memoryview:
        return self.file.buffer[PAGE_BYTES : PAGE_BYTES + size_bytes]


class Arena:
    """All slots of one run on one node.

    Invariants: the sum of slot files never exceeds the budget; a slot number is never used again, since whoever knew a
    slot knows it by that; only FREE slots are removed.
    Threads: the agent's event loop only, except `Slot.image` buffers and `make_ready`.
    """

    def __init__(self, root: Path, budget_bytes: int) -> None:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.root = root
        self.budget_bytes = budget_bytes
        self.slots: dict[int, Slot] = {}
        self._next = 0

    def adopt(self) -> list[Slot]:
        """Map the slots an earlier agent left. A file without a valid page holds nothing and is removed, and so is a
        free one whose room was not promised yet: its agent died making it ready.
        """
        for path in sorted(self.root.glob(f"{_SLOT}*")):
            with contextlib.suppress(ValueError):
                found = path.stat()
                if found.st_size <= PAGE_BYTES or found.st_blocks == 0:
                    path.unlink()  # made by half: looking into one without room would kill this agent, too
                    continue
                file = MappedFile(path)
                slot = Slot(int(path.name.removeprefix(_SLOT)), file, SlotPage(file.buffer), ready=True)
                self.slots[slot.number] = slot
                half_made = slot.page.state == SlotState.FREE and _lacking_bytes(slot) > 0
                if not slot.page.valid or slot.page.image_bytes > slot.capacity_bytes or half_made:
                    self.remove(slot)
        self._next = max(self.slots, default=-1) + 1
        return list(self.slots.values())

    @property
    def used_bytes(self) -> int:
        return sum(s.file.size_bytes for s in self.slots.values())

    def room_bytes(self) -> int:
        """How much more the budget and the file system allow."""
        fs = os.statvfs(self.root)
        promised = sum(_lacking_bytes(s) for s in self.slots.values() if not s.ready)
        room = fs.f_bavail * fs.f_frsize - promised
        return min(room, self.budget_bytes - self.used_bytes) if self.budget_bytes else room

    def deal(
        self, rank: int, count: int, image_bytes: int, *, image: int = 0, besides: Collection[Slot] = ()
    ) -> list[Slot]:
        """Give `rank` `count` slots of at least `image_bytes`: its own first, then free ones, then new ones.

        `image`: for which of its images; `besides` are promised already.

        New slots are not ready; the caller runs `make_ready` on each and then sets `dealt_rank`.

        Raises: CapacityError with the sum and what to set; nothing is dealt then.
        """
        fitting = [s for s in self.slots.values() if s.capacity_bytes >= image_bytes and s not in besides]
        own = [s for s in fitting if self._is_of(s, rank) and s.for_image == image]
        loose = [s for s in fitting if s not in own and self._loose(s) and s.capacity_bytes <= 2 * image_bytes]
        chosen = sorted(own, key=lambda s: s.number) + loose
        missing = count - len(chosen)
        if missing > 0:
            keep = [*chosen, *besides]
            self._make_room(missing * (image_bytes + PAGE_BYTES), keep=keep, what=(count, image_bytes))
        chosen = chosen[:count] if missing <= 0 else chosen
        return chosen + self._create_for(rank, image, max(missing, 0), image_bytes)

    def _create_for(self, rank: int, image: int, count: int, image_bytes: int) -> list[Slot]:
        """New slots, reserved: else another rank's call could take one between being ready and being dealt."""
        new: list[Slot] = []
        try:
            for _ in range(count):
                new.append(self.create(image_bytes))
                new[-1].reserved_for, new[-1].reserved_image = rank, image
        except HoldfastError:
            for slot in new:
                self.remove(slot)
            raise
        return new

    def _is_of(self, slot: Slot, rank: int) -> bool:
        holds = slot.page.state != SlotState.FREE and slot.page.rank == rank
        return holds or rank in (slot.page.dealt_rank, slot.reserved_for)

    def _loose(self, slot: Slot) -> bool:
        free = slot.page.state == SlotState.FREE and slot.page.dealt_rank < 0
        return free and slot.ready and slot.reserved_for < 0

    def _make_room(self, needed_bytes: int, keep: list[Slot], what: tuple[int, int]) -> None:
        """Remove slots nobody uses until `needed_bytes` fit; none when all of them would not do.

        Raises: CapacityError.
        """
        loose = [s for s in self.slots.values() if self._loose(s) and s not in keep]
        left_bytes = self.room_bytes() + sum(s.file.size_bytes for s in loose)
        if left_bytes < needed_bytes:
            count, image_bytes = what
            raise CapacityError(
                f"the arena {self.root} lacks room: {count} slots x {format_bytes(image_bytes)} are needed, "
                f"{format_bytes(needed_bytes)} of it new, and {format_bytes(max(0, left_bytes))} is left "
                f"(in use {format_bytes(self.used_bytes)}, budget "
                f"{format_bytes(self.budget_bytes) if self.budget_bytes else 'none set'})",
                hint=_HINT,
            )
        for slot in loose:
            if self.room_bytes() >= needed_bytes:
                break
            self.remove(slot)

    def take_loose(self, image_bytes: int) -> Slot:
        """A slot for the agent's own use (a fetch): a free one nobody was dealt, or a new one.

        Raises: CapacityError.
        """
        fitting = [s for s in self.slots.values() if self._loose(s) and s.capacity_bytes >= image_bytes]
        if fitting:
            return min(fitting, key=lambda s: s.capacity_bytes)
        self._make_room(image_bytes + PAGE_BYTES, keep=[], what=(1, image_bytes))
        return self.create(image_bytes)

    def create(self, capacity_bytes: int) -> Slot:
        """A new slot file with its page; its room is not yet promised. Raises: see `MappedFile`."""
        number, self._next = self._next, self._next + 1
        file = MappedFile(self.root / f"{_SLOT}{number:05d}", PAGE_BYTES + capacity_bytes, promise_bytes=PAGE_BYTES)
        slot = Slot(number, file, SlotPage(file.buffer))
        slot.page.initialise()
        self.slots[number] = slot
        return slot

    def make_ready(self, slot: Slot) -> None:
        """Promise the room and fault the pages, from the agent's side. Slow (about 1 s per GiB): in a worker thread.

        Raises: CapacityError when the file system has no room after all.
        """
        slot.file.promise(slot.file.size_bytes)
        populate(slot.file.buffer)
        slot.ready = True

    def remove(self, slot: Slot) -> None:
        """Give the room of a slot back."""
        del self.slots[slot.number]
        slot.file.path.unlink(missing_ok=True)
        slot.page.release()
        slot.file.close()

    def find(self, *states: SlotState) -> Iterator[Slot]:
        return (s for s in self.slots.values() if s.page.state in states)

    def close(self) -> None:
        """Unmap everything; files stay for the next agent."""
        for slot in self.slots.values():
            slot.page.release()
            slot.file.close()
        self.slots.clear()

    def destroy(self) -> None:
        """Free the memory: the run is over on this node."""
        for slot in list(self.slots.values()):
            self.remove(slot)
        remove_files(self.root)


def remove_files(root: Path) -> None:
    """Free an arena's memory as soon as nobody maps it, and remove its directory."""
    # The lock goes last: until then no successor can move in and lose its files to us.
    for path in sorted(root.iterdir(), key=lambda p: p.suffix == ".lock"):
        path.unlink(missing_ok=True)
    for directory in (root, root.parent):
        with contextlib.suppress(OSError):
            directory.rmdir()


def _lacking_bytes(slot: Slot) -> int:
    """How much of a slot the file system has not promised yet."""
    return max(0, slot.file.size_bytes - slot.file.path.stat().st_blocks * 512)
