"""Slots between a rank and its agent: taken, described, handed over or given back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from holdfast.model.identity import ImageId
from holdfast.trainer.slots import Slots, TrainerSlot
from holdfast.wire.pages import SlotState, barrier


@dataclass(frozen=True, slots=True)
class Described:
    """What the page of a slot says of the image in it.

    `due_mask` are the tiers it is for, `timed_mask` those of them by time alone.
    """

    image: ImageId
    size_bytes: int
    world_size: int
    image_count: int = 1
    due_mask: int = 0
    timed_mask: int = 0
    relies_on: ImageId | None = None


def take(slots: Slots, step: int, sizes: Sequence[tuple[int, int]], patience_s: float) -> list[TrainerSlot] | None:
    """A slot for each image of a step, by number of the image; None when one did not come free in time.

    Args:
        sizes: (number of the image, bytes), in the order in which they are taken.
        patience_s: wait so long for each, if that is longer than usual.

    Raises: as `Slots.take`; what was taken is given back then, also when it is interrupted.
    """
    taken: dict[int, TrainerSlot] = {}
    try:
        for image, size_bytes in sizes:
            slot = slots.take(step, size_bytes, image=image, patience_s=patience_s)
            if slot is None:
                return None
            taken[image] = slot
        return [taken[image] for image in sorted(taken)]
    finally:
        if len(taken) < len(sizes):
            give_back(slots, taken.values())


def describe(slot: TrainerSlot, of: Described) -> None:
    """Say on the page of a slot that is being filled what will stand in it."""
    page, image = slot.page, of.image
    page.attempt, page.step, page.rank, page.committed_mask = image.attempt, image.step, image.rank, 0
    page.world_size, page.image, page.image_count = of.world_size, image.image, of.image_count
    page.image_bytes, page.due_mask, page.timed_mask = of.size_bytes, of.due_mask, of.timed_mask
    page.relies_on_step = of.relies_on.step if of.relies_on is not None else -1


def hand_over(slot: TrainerSlot) -> None:
    """filling -> staged: everything in it is there, and it is the agent's from now on."""
    barrier()
    slot.page.state = SlotState.STAGED


def give_back(slots: Slots, taken: Iterable[TrainerSlot]) -> None:
    """filling -> free: what was begun will not be finished. What was handed over stays with the agent."""
    for slot in taken:
        slots.give_back(slot)
