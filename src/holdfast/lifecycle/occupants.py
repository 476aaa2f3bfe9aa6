"""The node machine's part about what is in its slots: images that come in, their checksums, their readers."""

from __future__ import annotations

from collections.abc import Callable

from holdfast.errors import CorruptError
from holdfast.lifecycle import actions, events
from holdfast.lifecycle.slots import Flush, NodeState, NodeStep, Occupant, Slot, SlotState
from holdfast.model.identity import ImageId
from holdfast.model.image import ImageHeader, ImageRecord


class Occupants:
    """Invariants: a slot holds one image at a time, and one filling of a slot is noted once; an image counts only when
    page, record and header agree on what it is.

    Threads: none.
    """

    def __init__(self, node: str, state: NodeState, do: Callable[[actions.NodeAction], None]) -> None:
        self._node = node
        self._state = state
        self._do = do

    # -- slots ---------------------------------------------------------------------------------------------------------
    def dealt(self, event: events.Dealt) -> None:
        """A slot counts among those of a rank."""
        slot = self._state.slots.setdefault(event.slot, Slot())
        slot.rank, slot.image = event.rank, event.image

    def undealt(self, event: events.Undealt) -> None:
        """A slot counts among those of no rank; a free one is forgotten."""
        slot = self._state.slots.get(event.slot)
        if slot is not None:
            slot.rank = None
            self._drop_slot_if_loose(event.slot)

    def _drop_slot_if_loose(self, number: int) -> None:
        slot = self._state.slots[number]
        if slot.rank is None and slot.occupant is None:
            del self._state.slots[number]

    def staged(self, event: events.Staged) -> None:
        """A trainer filled a slot."""
        if self._occupy(event, SlotState.SEALING, frozenset()):
            self._do(actions.Seal(event.slot))

    def adopted(self, event: events.Adopted) -> None:
        """An agent before this one held an image: it counts once it is verified."""
        if self._occupy(event, SlotState.VERIFYING, event.committed):
            self._do(actions.Verify(event.slot))

    def _occupy(self, event: events.Staged | events.Adopted, state: SlotState, committed: frozenset[str]) -> bool:
        """Take note of an image; whether it is news. A slot told twice by a poll is not."""
        return self._enter(
            Occupant(
                event.slot,
                event.generation,
                event.image,
                event.image_count,
                event.world_size,
                event.due,
                state,
                {t: Flush.WAITING for t in event.due} | {t: Flush.COMMITTED for t in committed},
                relies_on=event.relies_on,
                timed=event.timed,
            )
        )

    def fetched(self, event: events.Fetched) -> None:
        """A load brought an image, verified already."""
        header = event.header
        occupant = Occupant(
            event.slot,
            event.generation,
            event.record.id,
            header.image_count,
            header.world_size,
            frozenset(),
            SlotState.HELD,
            {t: Flush.COMMITTED for t in event.copies},
            event.record,
            header,
            event.pins,
            header.relies_on,
            set(event.copies),
        )
        if self._enter(occupant):
            self._state.steps[occupant.checkpoint].wanted = True
            self._tell(events.MemoryReceipt(self._node, event.record, header))

    def _enter(self, o: Occupant) -> bool:
        slot = self._state.slots.setdefault(o.slot, Slot())
        if slot.occupant is not None:
            if slot.occupant.generation == o.generation:
                return False
            raise ValueError(f"slot {o.slot} holds {slot.occupant.image} and was filled with {o.image}")
        step = self._state.steps.setdefault(o.checkpoint, NodeStep())
        if self._state.abandoned(o.checkpoint):
            self._state.forget(o.checkpoint)
        step.committed |= {t for t, f in o.flushes.items() if f is Flush.COMMITTED}
        off = step.off | step.committed if not step.forgotten else set(self._state.tiers)
        o.flushes = {
            t: Flush.COMMITTED if t in step.committed else f
            for t, f in o.flushes.items()
            if t in self._state.tiers and (f is not Flush.WAITING or t not in off)
        }
        slot.occupant = o
        self.announce(o)
        return True

    def announce(self, o: Occupant) -> None:
        """Tell the run machine that the image is here, whole or not yet."""
        committed = frozenset(t for t, f in o.flushes.items() if f is Flush.COMMITTED)
        told = events.ImageStaged(
            self._node, o.image, o.image_count, o.world_size, o.due, committed, o.relies_on, o.timed
        )
        self._tell(told)

    def owner_gone(self, event: events.OwnerGone) -> None:
        """Nobody will finish filling the slot."""
        slot = self._state.slots.get(event.slot)
        if slot is None or slot.occupant is None:
            self._do(actions.Free(event.slot, event.generation))

    def pinned(self, event: events.Pinned) -> None:
        """A reader came."""
        occupant = self._state.at(event.slot)
        if occupant is None or occupant.state is not SlotState.HELD:
            raise ValueError(f"slot {event.slot} holds no image to pin")
        occupant.pins += 1

    def unpinned(self, event: events.Unpinned) -> None:
        """A reader is done."""
        occupant = self._state.at(event.slot)
        if occupant is None or occupant.pins == 0:
            raise ValueError(f"slot {event.slot} is not pinned")
        occupant.pins -= 1

    def free(self, occupant: Occupant) -> None:
        """Let go of an image that nobody uses."""
        self._do(actions.Free(occupant.slot, occupant.generation))
        self._state.slots[occupant.slot].occupant = None
        self._drop_slot_if_loose(occupant.slot)
        if occupant.state is SlotState.HELD:
            self._tell(events.MemoryGone(self._node, occupant.image))

    # -- checksums -----------------------------------------------------------------------------------------------------
    def sealed(self, event: events.Sealed | events.Verified) -> None:
        """The image is whole in memory: checksum and header are known."""
        occupant = self._state.at(event.slot)
        if occupant is None or occupant.state not in (SlotState.SEALING, SlotState.VERIFYING):
            return
        if not _agree(occupant, event.record, event.header):
            self._bad(occupant, _mixed_up(occupant.image, event.header).to_dict())
            return
        if occupant.state is SlotState.SEALING:
            self._do(actions.Hold(event.slot, occupant.generation, event.record.crc64nvme))
        occupant.state, occupant.record, occupant.header = SlotState.HELD, event.record, event.header
        self._tell(events.MemoryReceipt(self._node, event.record, event.header))

    def seal_failed(self, event: events.SealFailed | events.VerifyFailed) -> None:
        """What is in the slot is no image, or not the one its block table speaks of."""
        occupant = self._state.at(event.slot)
        if occupant is not None and occupant.state in (SlotState.SEALING, SlotState.VERIFYING):
            self._bad(occupant, event.error)

    def found_bad(self, event: events.FoundBad) -> None:
        """A reader found other bytes than the checksum says."""
        occupant = self._state.at(event.slot)
        if occupant is not None and occupant.state is SlotState.HELD:
            self._bad(occupant, event.error)

    def _bad(self, occupant: Occupant, error: events.Error) -> None:
        occupant.state = SlotState.BAD
        occupant.drop_all()
        # At once: until the run machine says so too, nothing older may be freed for its sake.
        for checkpoint in {occupant.checkpoint, *(o.checkpoint for o in self._state.users(occupant.image))}:
            self._state.steps[checkpoint].whole = False
        self._tell(events.ImageFailed(self._node, occupant.image, error))

    def _tell(self, event: events.FromNode) -> None:
        self._do(actions.ToRun(event))


def _agree(occupant: Occupant, record: ImageRecord, header: ImageHeader) -> bool:
    """Whether page, record and header speak of the same image: images of two attempts never form a checkpoint."""
    said = (header.id, header.world_size, header.image_count, header.relies_on, record.id)
    told = (occupant.image, occupant.world_size, occupant.image_count, occupant.relies_on, occupant.image)
    return said == told


def _mixed_up(image: ImageId, header: ImageHeader) -> CorruptError:
    return CorruptError(f"the slot of {image} holds {header.id} of {header.world_size} ranks", step=image.step)
