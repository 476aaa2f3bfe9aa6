"""What of each saved piece belongs into a live tensor: where the rectangles of the two meet. It is copied there."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress

import torch

from holdfast.errors import CorruptError, LoadError
from holdfast.model.image import Entry
from holdfast.model.rect import Rect
from holdfast.store.ranged import RangedImage
from holdfast.trainer import dtensor
from holdfast.trainer.fill import Segment, fill
from holdfast.trainer.filling import copy, views_of
from holdfast.trainer.move import is_plain_memory
from holdfast.trainer.pour import Detour, pour
from holdfast.trainer.saved import SavedTensor, Source
from holdfast.trainer.stage import view_of
from holdfast.trainer.structure import Box, Boxes, whole_box
from holdfast.trainer.values import copyable, dtype_of


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


class Filling:
    """Portions of images, and the live tensors they fill: `fill` or `fill_from`. If one of them raises, what is filled
    is undefined and can be filled again.

    Args:
        sources: the images, in whose order the portions name them. `fill_from` reads nothing of them.
    """

    def __init__(self, sources: Sequence[Source], portions: Sequence[Portion]) -> None:
        self._sources = sources
        self._portions = portions

    @property
    def span_bytes(self) -> int:
        """How much of the images lies between the first and the last byte of each part that is copied."""
        return sum(p.stop - p.start for p in self._portions)

    def fill(self, *, prove: Collection[int] = (), threads: int = 1) -> dict[int, CorruptError]:
        """Copy into the live tensors, and prove on the way the images that `prove` names by their place in the sources.

        Keeps no view of the sources' buffers.

        Returns: the error of each image found bad; the live state is undefined then.
        Raises: LoadError: torch refused to fill a tensor.
        """
        for source in {p.source for p in self._portions}:
            self._whole(source)
        plain, odd = self._ways()
        bad = fill(self._sources, [segment for _, segment in plain], prove=prove, threads=threads)
        _written(plain)
        if odd and not bad:
            try:
                self._copy_odd(odd)
            except RuntimeError as e:  # a live tensor that torch lets nobody write, a device that is full or gone
                raise LoadError(f"a tensor of the state cannot be filled: {e}") from e
        return bad

    def fill_from(self, images: Sequence[RangedImage]) -> None:
        """Like `fill`, from images on a tier, one for each source: only blocks that are needed are read, all proven.

        Raises: CorruptError, NotFoundError, TierError: a block cannot be had, the live state is undefined then;
            LoadError: torch refused to fill a tensor.
        """
        plain, odd = self._ways()
        detours = [
            Detour(p.source, p.entry, p.start, p.stop, partial(_arrive, destination, p)) for destination, p in odd
        ]
        try:
            pour(images, [segment for _, segment in plain], detours)
        except RuntimeError as e:
            raise LoadError(f"a tensor of the state cannot be filled: {e}") from e
        _written(plain)

    def _ways(self) -> tuple[list[tuple[torch.Tensor, Segment]], list[tuple[torch.Tensor, Portion]]]:
        """The copies that are one move of bytes, and the others; each with its part of a live tensor."""
        plain, odd = [], []
        for p in self._portions:
            destination = p.destination()
            if is_plain_memory(destination) and p.is_run_for(destination):
                plain.append((destination, Segment(p.source, p.start, p.nbytes, destination.data_ptr())))
            else:
                odd.append((destination, p))
        return plain, odd

    def _copy_odd(self, copies: list[tuple[torch.Tensor, Portion]]) -> None:
        """What is no run of bytes in this process's memory and in the image: other devices, strides, conjugates."""
        entries: dict[int, list[Entry]] = {}
        for _, p in copies:
            entries.setdefault(p.source, []).append(p.entry)
        views = {s: iter(views_of(self._whole(s), found)) for s, found in entries.items()}
        destinations = [destination for destination, _ in copies]
        _copy_into_live(destinations, [_seen_like(d, p.seen_in(next(views[p.source]))) for d, p in copies])

    def _whole(self, source: int) -> memoryview:
        header, buffer = self._sources[source].header, self._sources[source].buffer
        if len(buffer) < header.size_bytes:
            raise CorruptError(f"{header.id} has {len(buffer)} of {header.size_bytes} bytes")
        return buffer[: header.size_bytes]


def filling_of(sources: Sequence[Source], copies: Iterable[tuple[torch.Tensor, SavedTensor]]) -> Filling:
    """What fills these live tensors, whole. Raises: as `portions`."""
    return Filling(sources, [portion for live, found in copies for portion in portions(live, found)])


def _copy_into_live(destinations: list[torch.Tensor], saved: list[torch.Tensor]) -> None:
    """One call for all, but for live tensors that are a conjugate or a negative of their memory, or made for inference:
    it takes none of these."""
    destinations = list(map(copyable, destinations))
    odd = [d.is_conj() or d.is_neg() or d.is_inference() for d in destinations]
    if any(odd):
        for d, s in compress(zip(destinations, saved, strict=True), odd):
            with torch.inference_mode(d.is_inference()), torch.no_grad():
                d.copy_(s)
        destinations = [d for d, o in zip(destinations, odd, strict=True) if not o]
        saved = [s for s, o in zip(saved, odd, strict=True) if not o]
    copy(destinations, saved)


def _seen_like(destination: torch.Tensor, saved: torch.Tensor) -> torch.Tensor:
    for dim, length in enumerate(destination.shape):
        if saved.shape[dim] != length:
            saved = saved.narrow(dim, 0, length)
    return saved


def _written(plain: list[tuple[torch.Tensor, Segment]]) -> None:
    """What autograd remembers of these tensors is over, as after any write in place."""
    torch.autograd.graph.increment_version([d for d, _ in plain if not d.is_inference()])


def _arrive(destination: torch.Tensor, portion: Portion, saved: torch.Tensor) -> None:
    _copy_into_live([destination], [_seen_like(destination, portion.seen_in(saved))])
