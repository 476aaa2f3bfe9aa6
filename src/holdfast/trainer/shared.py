"""The image that a rank's steps share: staged once, relied on until its tensors change."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from holdfast.format.layout import Template
from holdfast.model.identity import ImageId
from holdfast.trainer.capture import Captured
from holdfast.trainer.slots import Slots, TrainerSlot
from holdfast.trainer.stage import Stager
from holdfast.trainer.unchanged import different, fingerprints
from holdfast.wire.pages import SlotState


@dataclass(frozen=True, slots=True)
class _Staged:
    """What was staged last: where, and what the tensors on other devices were then."""

    slot: TrainerSlot
    generation: int
    image: ImageId
    fingerprints: dict[int, tuple[int, int]]


class SharedPart:
    """Invariant: a step relies on the image only if it was compared with the live tensors in that very save.

    Threads: the training thread.
    """

    def __init__(self, template: Template, threads: int) -> None:
        self.template = template
        self._threads = threads
        self._stager = Stager(template, threads=threads)
        self._staged: _Staged | None = None

    @property
    def size_bytes(self) -> int:
        return self.template.layout.size_bytes

    def relied_on(self, slots: Slots, attempt: int) -> ImageId | None:
        """The image of this attempt that the agent still holds. What only seems to be held nobody would find whole."""
        staged = self._staged
        if staged is not None and not slots.has(staged.slot):
            staged = self._staged = None  # it would keep the memory
        if staged is None or staged.image.attempt != attempt:
            return None
        page = staged.slot.page
        held = page.generation == staged.generation and page.state in (SlotState.STAGED, SlotState.HELD)
        return staged.image if held else None

    def changed(self, captured: Captured) -> list[str]:
        """The tensors whose bytes are not those staged."""
        staged = self._staged
        assert staged is not None
        kept, live = self._stager.sides(staged.slot.room(self.size_bytes), captured)
        here = [i for i, tensor in enumerate(live) if i not in staged.fingerprints]
        places = [here[n] for n in different([live[i] for i in here], [kept[i] for i in here], self._threads)]
        away = list(staged.fingerprints)
        now = dict(zip(away, fingerprints([live[i] for i in away]), strict=True)) if away else {}
        places += [i for i in away if now[i] != staged.fingerprints[i]]
        return [self.template.layout.entries[i].piece.fqn for i in sorted(places)]

    def stage(self, slot: TrainerSlot, captured: Captured, image: ImageId) -> None:
        """Fill the slot; its page is the caller's business."""
        room = slot.room(self.size_bytes)
        self._stager.stage(room, captured, b"", attempt=image.attempt, step=image.step)
        _, live = self._stager.sides(room, captured)
        away = [i for i, tensor in enumerate(live) if _is_away(tensor)]
        prints = fingerprints([live[i] for i in away]) if away else []
        self._staged = _Staged(slot, slot.page.generation, image, dict(zip(away, prints, strict=True)))

    def outdate(self) -> None:
        """No later save relies on what was staged: while a save waits to stage another, the agent may free it."""
        self._staged = None

    def forget_buffers(self) -> None:
        """Let go of every view of the slots; views are made anew where they are needed again."""
        self._stager.forget_buffers()

    def forget(self) -> None:
        """Let go of the slots, and of the state."""
        self._stager.forget()
        self._staged = None


def _is_away(tensor: torch.Tensor) -> bool:
    return tensor.device.type != "cpu"
