"""Copies a state into a slot: which tensor, or which part of one, belongs into which entry of the image."""

from __future__ import annotations

from operator import is_

import torch

from holdfast.format.image import Template
from holdfast.model.image import Piece
from holdfast.model.rect import Rect
from holdfast.trainer.capture import Captured
from holdfast.trainer.filling import ImageFiller
from holdfast.trainer.picture import Way, way
from holdfast.trainer.structure import Box, Boxes
from holdfast.trainer.values import copyable


class Stager:
    """Fills image buffers of one template from a state.

    Args:
        threads: how many cores may copy.

    Invariants: a buffer given once stays mapped until `forget_buffers()`.
    Threads: one.
    """

    def __init__(self, template: Template, *, threads: int = 1) -> None:
        self._filler = ImageFiller(template, threads=threads)
        entries = template.layout.entries
        self._names = [entry.piece.fqn for entry in entries]
        self._parts = [(i, e.piece) for i, e in enumerate(entries) if not (e.piece.is_whole and e.piece.nbytes)]
        self._sources: list[torch.Tensor] = []
        self._sources_of: tuple[object, object] | None = None
        self._viewed: list[torch.Tensor] = []
        self._ways: list[Way] = []

    def stage(self, buffer: memoryview, captured: Captured, payload: bytes, *, attempt: int, step: int) -> None:
        """Write the whole image but its block table: tensors, plain values, header.

        Args:
            buffer: writable, at least as long as the image, beginning where the image begins.
            captured: has exactly the tensors that the template was laid out for.

        Raises: CapacityError: the plain values outgrew the template.
        """
        self._filler.fill(buffer, self._sources_from(captured), payload, attempt=attempt, step=step)

    def sides(self, buffer: memoryview, captured: Captured) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Per entry the tensor in the buffer, and the live one: not to be written through."""
        return self._filler.views(buffer), self._sources_from(captured)

    def retitle(self, template: Template) -> None:
        """Write another header from now on; everything else stands where it stood."""
        self._filler.retitle(template)

    def forget_buffers(self) -> None:
        """Let go of all buffers, so that mappings can be closed; views are made anew where they are needed again."""
        self._filler.forget_buffers()

    def forget(self) -> None:
        """Let go of all buffers and tensors."""
        self._filler.forget_buffers()
        self._filler.forget_sources()
        self._sources, self._sources_of = [], None
        self._viewed, self._ways = [], []

    def _sources_from(self, captured: Captured) -> list[torch.Tensor]:
        """Per entry the live tensor, or a view of it: made anew where it sees its memory otherwise than it did then."""
        of = (captured.tensors, captured.own)
        same = self._sources_of is not None and all(map(is_, of, self._sources_of))
        if not same or list(map(way, self._viewed)) != self._ways:
            tensors = {**captured.tensors, **captured.own}
            live = list(map(tensors.__getitem__, self._names))
            sources = live.copy()
            for i, piece in self._parts:
                boxes = () if piece.owner_rank is not None else captured.structure.boxes_of(piece.fqn)
                sources[i] = rectangle(live[i], piece, boxes)
            self._sources = list(map(copyable, sources))
            self._viewed = [tensor for tensor, source in zip(live, self._sources, strict=True) if source is not tensor]
            self._ways = list(map(way, self._viewed))
            self._sources_of = of
        return self._sources


def rectangle(tensor: torch.Tensor, piece: Piece, boxes: Boxes) -> torch.Tensor:
    """The view of a tensor that a piece is, or the tensor itself; `boxes` says what of the global tensor it holds."""
    if not piece.nbytes:  # a shard of a tensor without elements may have another shape without elements
        return tensor.new_empty(piece.lengths)
    box = next(b for b in boxes if b.rect.meet(piece.rect) == piece.rect)
    view = view_of(tensor.detach(), box, piece.rect)
    return tensor if view.shape == tensor.shape else view


def view_of(tensor: torch.Tensor, box: Box, rect: Rect) -> torch.Tensor:
    """The view that a rectangle of a box is; the tensor holds the box."""
    for dim, (offset, length) in enumerate(zip(*rect, strict=True)):
        if length != tensor.shape[dim]:
            tensor = tensor.narrow(dim, box.at[dim] + offset - box.offsets[dim], length)
    return tensor
