"""Who is loading: the step each rank reads, and the slots that stay for it meanwhile."""

from __future__ import annotations

from typing import Protocol

from holdfast.lifecycle import events
from holdfast.model.identity import CheckpointId


class Machines(Protocol):
    """The two machines, as far as a load concerns them."""

    def tell_node(self, event: events.NodeEvent) -> None:
        """Something happened on this node."""

    def tell_run(self, event: events.RunEvent) -> None:
        """Something happened to the run."""


class Readers:
    """Invariants: a pin belongs to a rank that reads, or that stands on what it read until an attempt is claimed; a
    rank reads one step at a time; `end` gives everything back.

    Threads: the agent's event loop only.
    """

    def __init__(self, machines: Machines) -> None:
        self._machines = machines
        self._reading: dict[int, CheckpointId] = {}
        self._pins: dict[int, list[int]] = {}
        self._standing: dict[int, CheckpointId] = {}

    def begin(self, rank: int, checkpoint: CheckpointId) -> None:
        """A rank reads this step from now on, and what it read before no longer."""
        if not self.reads(rank, checkpoint):
            if self._standing.pop(rank, None) != checkpoint:
                self.end(rank)
            self._reading[rank] = checkpoint
            self._machines.tell_run(events.LoadBegun(checkpoint))

    def stand(self, rank: int) -> None:
        """A rank has read, and its next save will stand on that: the step may be deleted, its slots stay till then."""
        checkpoint = self._reading.pop(rank, None)
        if checkpoint is not None:
            self._standing[rank] = checkpoint
            self._machines.tell_run(events.LoadEnded(checkpoint))

    def stood(self) -> None:
        """An attempt was claimed: what it stands on is on the lineage now, and kept for that."""
        for rank in self._standing.keys() - self._reading.keys():
            self.end(rank)

    def reads(self, rank: int, checkpoint: CheckpointId) -> bool:
        return self._reading.get(rank) == checkpoint

    def reading(self, rank: int) -> CheckpointId | None:
        """What a rank reads now."""
        return self._reading.get(rank)

    def is_loading(self, rank: int) -> bool:
        return rank in self._reading

    def pin(self, rank: int, slot: int) -> None:
        """Keep a slot for a rank that reads."""
        self._machines.tell_node(events.Pinned(slot))
        self.note(rank, slot)

    def note(self, rank: int, slot: int) -> None:
        """The node machine has pinned a slot for a rank that reads."""
        self._pins.setdefault(rank, []).append(slot)

    def drop(self, slot: int) -> None:
        """Nobody reads this slot any more: what is in it is bad."""
        for rank, slots in self._pins.items():
            for _ in range(slots.count(slot)):
                self._machines.tell_node(events.Unpinned(slot))
            self._pins[rank] = [s for s in slots if s != slot]

    def end(self, rank: int) -> None:
        """A rank reads nothing any more, or is gone."""
        for slot in self._pins.pop(rank, []):
            self._machines.tell_node(events.Unpinned(slot))
        self._standing.pop(rank, None)
        checkpoint = self._reading.pop(rank, None)
        if checkpoint is not None:
            self._machines.tell_run(events.LoadEnded(checkpoint))

    def end_all(self) -> None:
        """A new launch: what the old ranks were reading is over."""
        for rank in [*self._reading, *self._standing]:
            self.end(rank)
