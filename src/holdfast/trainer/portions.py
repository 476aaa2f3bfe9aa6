"""What of each saved piece belongs into a live tensor: where the rectangles of the two meet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from holdfast.model.image import Entry
from holdfast.model.rect import Rect
from holdfast.trainer import dtensor
from holdfast.trainer.saved import SavedTensor
from holdfast.trainer.stage import view_of
from holdfast.trainer.structure import Box, Boxes, whole_box
from holdfast.trainer.values import dtype_of


@dataclass(frozen=True, slots=True)
class Portion:
    """A rectangle that an entry of an image holds and a box of a live tensor needs.

    `memory` is the live tensor, or the local one of a DTensor; `source` the place of the image in the sources given.
    """

    memory: torch.Tensor
    box: Box
    source: int
    entry: Entry
    rect: Rect

    @property
    def start(self) -> int:
        """Where its first element stands in the image."""
        return self.entry.start + self._span_bytes[0]

    @property
    def stop(self) -> int:
        """Where its last element ends in the image; between the two may stand what nobody needs."""
        return self.entry.start + self._span_bytes[1]

    @property
    def _span_bytes(self) -> tuple[int, int]:
        first, stop = self.entry.piece.rect.span(self.rect)
        return first * self.entry.piece.itemsize, stop * self.entry.piece.itemsize

    @property
    def nbytes(self) -> int:
        return self.rect.size * self.entry.piece.itemsize

    def destination(self) -> torch.Tensor:
        """The part of the live tensor that it fills; of an expanded one, the one element behind all of them."""
        view = view_of(self.memory.detach(), self.box, self.rect)
        for dim, stride in enumerate(view.stride()):
            if stride == 0 and view.shape[dim] > 1:
                view = view.narrow(dim, 0, 1)
        return view

    def is_run_for(self, destination: torch.Tensor) -> bool:
        """Whether its bytes in the image are one run, and those that a destination in plain memory needs."""
        return (
            self.stop - self.start == self.nbytes
            and tuple(destination.shape) == self.rect.lengths
            and destination.dtype is dtype_of(self.entry.piece.dtype)
        )

    def seen_in(self, entry: torch.Tensor) -> torch.Tensor:
        """The view of it in a tensor that is the whole entry."""
        piece = self.entry.piece
        return view_of(entry, Box(piece.offsets, piece.lengths, (0,) * len(piece.lengths)), self.rect)


def portions(live: torch.Tensor, found: SavedTensor) -> Iterator[Portion]:
    """All that fills a live tensor of the same global shape.

    Raises: CorruptError: the images do not hold all of the tensor.
    """
    boxes = dtensor.boxes_of(live)
    yield from meet(dtensor.local_of(live), (whole_box(found.shape),) if boxes is None else boxes, found)


def meet(memory: torch.Tensor, boxes: Boxes, found: SavedTensor) -> Iterator[Portion]:
    """All that fills memory which holds these boxes of a tensor. Raises: as `portions`."""
    for source, entry in found.pieces():
        for box in boxes:
            rect = box.rect.meet(entry.piece.rect)
            if rect is not None:
                yield Portion(memory, box, source, entry, rect)
