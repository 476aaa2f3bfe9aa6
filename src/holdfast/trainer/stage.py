"""Copies a state into a slot: the one copy a save makes.

Large tensors that are plain memory are moved by all cores of the rank; all others go in one call of torch, whose loop
in C costs half of one in Python. Views into a slot are made once and kept, like the slot.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Iterable
from operator import attrgetter

import torch

from holdfast.format.image import Template, write_plain
from holdfast.model.image import Entry, Piece
from holdfast.trainer.capture import Captured
from holdfast.trainer.move import is_plain_memory, move
from holdfast.trainer.structure import Box, Boxes, Rect, intersection
from holdfast.trainer.values import copyable, dtype_of

_LARGE_BYTES = 1 << 20
_device = attrgetter("device")


class Stager:
    """Fills image buffers of one template.

    Args:
        threads: how many cores may copy.

    Invariants: a buffer given once stays mapped until `forget()`.
    Threads: one, except that `warm` may run in another before the first `stage` of that buffer.
    """

    def __init__(self, template: Template, *, threads: int = 1) -> None:
        self._template = template
        self._threads = threads
        self._entries = template.layout.entries
        self._views: dict[tuple[int, int], list[torch.Tensor]] = {}
        self._names = [entry.piece.fqn for entry in self._entries]
        self._large = [i for i, entry in enumerate(self._entries) if entry.piece.nbytes >= _LARGE_BYTES]
        self._parts = [(i, e.piece) for i, e in enumerate(self._entries) if not (e.piece.is_whole and e.piece.nbytes)]
        self._sources: list[torch.Tensor] = []
        self._sources_of: tuple[object, object] | None = None

    def stage(self, buffer: memoryview, captured: Captured, payload: bytes, *, attempt: int, step: int) -> None:
        """Write the whole image but its block table: tensors, plain values, header.

        Args:
            buffer: writable, at least as long as the image, beginning where the image begins.
            captured: has exactly the tensors that the template was laid out for.

        Raises: CapacityError: the plain values outgrew the template.
        """
        write_plain(buffer, self._template.layout, payload)  # first: it alone may be refused
        destinations, sources = self._destinations(buffer), self._sources_from(captured)
        moved = [i for i in self._large if is_plain_memory(sources[i])]
        move([(destinations[i].data_ptr(), sources[i].data_ptr(), sources[i].nbytes) for i in moved], self._threads)
        if moved:
            rest = sorted(set(range(len(sources))).difference(moved))
            destinations, sources = [destinations[i] for i in rest], [sources[i] for i in rest]
        copy(destinations, sources)
        self._template.stamp(buffer, attempt, step)

    def warm(self, buffer: memoryview) -> None:
        """Make the views of a buffer ahead of its first use."""
        self._destinations(buffer)

    def forget(self) -> None:
        """Let go of all buffers and tensors, so that mappings can be closed."""
        self._views.clear()
        self._sources, self._sources_of = [], None

    def _destinations(self, buffer: memoryview) -> list[torch.Tensor]:
        size = self._template.layout.size_bytes
        key = (ctypes.addressof(ctypes.c_char.from_buffer(buffer)), size)
        views = self._views.get(key)
        if views is None:
            views = self._views[key] = views_of(buffer[:size], self._entries)
        return views

    def _sources_from(self, captured: Captured) -> list[torch.Tensor]:
        of = (captured.tensors, captured.own)
        if self._sources_of is None or any(a is not b for a, b in zip(of, self._sources_of, strict=True)):
            tensors = {**captured.tensors, **captured.own}
            self._sources = list(map(tensors.__getitem__, self._names))
            for i, piece in self._parts:
                boxes = () if piece.owner_rank is not None else captured.structure.boxes_of(piece.fqn)
                self._sources[i] = rectangle(self._sources[i], piece, boxes)
            self._sources = list(map(copyable, self._sources))
            self._sources_of = of
        return self._sources


def rectangle(tensor: torch.Tensor, piece: Piece, boxes: Boxes) -> torch.Tensor:
    """The view of a tensor that a piece is; `boxes` says what of the global tensor it holds."""
    if not piece.nbytes:  # a shard of a tensor without elements may have another shape without elements
        return tensor.new_empty(piece.lengths)
    rect = (piece.offsets, piece.lengths)
    box = next(b for b in boxes if intersection(b.rect, rect) == rect)
    return view_of(tensor.detach(), box, rect)


def view_of(tensor: torch.Tensor, box: Box, rect: Rect) -> torch.Tensor:
    """The view that a rectangle of a box is; the tensor holds the box."""
    for dim, (offset, length) in enumerate(zip(*rect, strict=True)):
        if length != tensor.shape[dim]:
            tensor = tensor.narrow(dim, box.at[dim] + offset - box.offsets[dim], length)
    return tensor


def views_of(buffer: memoryview, entries: Iterable[Entry]) -> list[torch.Tensor]:
    """A tensor over the bytes of each entry of an image. A read-only buffer must not be written through them.

    The image is seen once per dtype, as one long tensor, and each entry as a strided part of that: one call per entry.
    What torch does not copy is seen as bytes (`copyable`).
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        raw = torch.frombuffer(buffer, dtype=torch.uint8)
    typed: dict[str, torch.Tensor] = {}
    views = []
    for entry in entries:
        piece = entry.piece
        if piece.dtype not in typed:
            typed[piece.dtype] = copyable(raw.view(dtype_of(piece.dtype)))
        views.append(
            typed[piece.dtype].as_strided(piece.lengths, _strides(piece.lengths), entry.start // piece.itemsize)
        )
    return views


def _strides(lengths: tuple[int, ...]) -> tuple[int, ...]:
    strides = []
    step = 1
    for length in reversed(lengths):
        strides.append(step)
        step *= max(length, 1)
    return tuple(reversed(strides))


def copy(destinations: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    """Copy each source into its destination. On return every byte has arrived."""
    if not sources:
        return
    pairs: dict[tuple[torch.device, torch.device], tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
    places = [set(map(_device, tensors)) for tensors in (destinations, sources)]
    if all(len(devices) == 1 for devices in places):
        pairs[places[0].pop(), places[1].pop()] = (destinations, sources)
    else:
        for d, s in zip(destinations, sources, strict=True):
            to, of = pairs.setdefault((d.device, s.device), ([], []))
            to.append(d)
            of.append(s)
    devices = {device for way in pairs for device in way if device.type != "cpu"}
    # Subclasses are copied as the bytes they are, whatever they make of a call.
    with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
        # Other devices first: they copy while the processor copies its own.
        for way in sorted(pairs, key=lambda way: way[0].type == way[1].type == "cpu"):
            torch._foreach_copy_(*pairs[way], non_blocking=True)
    for device in devices:
        torch.accelerator.current_stream(device).synchronize()
