"""Fills the buffers of images: the one copy a save makes.

Large tensors that are plain memory are moved by all cores of the rank; all others go in one call of torch, whose loop
in C costs less than one in Python. Views into a buffer are made once and kept, like the slot it is of.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from holdfast.format.image import Template, write_plain
from holdfast.model.image import Entry
from holdfast.trainer.devices import copy_between_devices
from holdfast.trainer.move import is_plain_memory, move
from holdfast.trainer.values import copyable, dtype_of

_LARGE_BYTES = 1 << 20


@dataclass(slots=True)
class _Views:
    """Tensors over the entries of one buffer; `rest`: those at the places `left`, once that was asked for."""

    all: list[torch.Tensor]
    left: list[int] | None = None
    rest: list[torch.Tensor] = field(default_factory=list)


class ImageFiller:
    """Fills image buffers of one template.

    Args:
        threads: how many cores may copy.

    Invariants: a buffer given once stays mapped until `forget_buffers()`. What was found out of sources holds as long
        as the same list is given.
    Threads: one.
    """

    def __init__(self, template: Template, *, threads: int = 1) -> None:
        self._template = template
        self._threads = threads
        self._entries = template.layout.entries
        self._large = [i for i, entry in enumerate(self._entries) if entry.piece.nbytes >= _LARGE_BYTES]
        self._views: dict[tuple[int, int], _Views] = {}
        self._sources: list[torch.Tensor] | None = None
        self._on_host = False
        self._moved: list[int] = []
        self._left: list[int] = []
        self._left_sources: list[torch.Tensor] | None = None

    def fill(self, buffer: memoryview, sources: list[torch.Tensor], payload: bytes, *, attempt: int, step: int) -> None:
        """Write the whole image but its block table: tensors, plain values, header.

        Args:
            buffer: writable, at least as long as the image, beginning where the image begins.
            sources: per entry a tensor of its shape and dtype, `copyable`.

        Raises: CapacityError: the plain values outgrew the template.
        """
        write_plain(buffer, self._template.layout, payload)  # first: it alone may be refused
        self._template.stamp(buffer, attempt, step)  # before the entries: it clears what lies between small ones
        views = self._views_of(buffer)
        if sources is not self._sources:
            self._sources, self._left_sources = sources, None
            self._on_host = all(tensor.device.type == "cpu" for tensor in sources)
        moved = [i for i in self._large if is_plain_memory(sources[i])]
        move([(views.all[i].data_ptr(), sources[i].data_ptr(), sources[i].nbytes) for i in moved], self._threads)
        copy(*self._rest(views, sources, moved), on_host=self._on_host)

    def views(self, buffer: memoryview) -> list[torch.Tensor]:
        """Per entry its tensor in the buffer."""
        return self._views_of(buffer).all

    def retitle(self, template: Template) -> None:
        """Write another header from now on; everything else stands where it stood."""
        assert template.layout == self._template.layout
        self._template = template

    def forget_buffers(self) -> None:
        """Let go of all buffers, so that mappings can be closed; views are made anew where they are needed again."""
        self._views.clear()

    def forget_sources(self) -> None:
        """Let go of the tensors that were copied last."""
        self._sources, self._left_sources = None, None

    def _views_of(self, buffer: memoryview) -> _Views:
        size = self._template.layout.size_bytes
        key = (ctypes.addressof(ctypes.c_char.from_buffer(buffer)), size)
        views = self._views.get(key)
        if views is None:
            views = self._views[key] = _Views(views_of(buffer[:size], self._entries))
        return views

    def _rest(
        self, views: _Views, sources: list[torch.Tensor], moved: list[int]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """What is not moved. The lists are made anew only when something about them changed."""
        if not moved:
            return views.all, sources
        if moved != self._moved or self._left_sources is None:
            self._moved = moved
            self._left = sorted(set(range(len(sources))).difference(moved))
            self._left_sources = [sources[i] for i in self._left]
        if views.left is not self._left:
            views.left, views.rest = self._left, [views.all[i] for i in self._left]
        return views.rest, self._left_sources


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


def copy(destinations: list[torch.Tensor], sources: list[torch.Tensor], *, on_host: bool = False) -> None:
    """Copy each source into its destination. On return every byte has arrived.

    Args:
        on_host: all are known to be in this process's memory, so that none is asked.
    """
    if not sources:
        return
    # Subclasses are copied as the bytes they are, whatever they make of a call.
    with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
        if on_host:
            torch._foreach_copy_(destinations, sources)
        else:
            copy_between_devices(destinations, sources)
