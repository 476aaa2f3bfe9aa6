"""Fills a live state from the images of a checkpoint: first everything is compared, then everything is copied.

Tensors are filled in place, pieces assembled in their tensor; what has no live counterpart is allocated. Plain values,
optimizer settings and `load_state_dict` come last.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import partial
from itertools import compress
from typing import Any

import torch

from holdfast.errors import CorruptError, LoadError
from holdfast.model.image import Entry
from holdfast.store.ranged import RangedImage
from holdfast.trainer import dtensor
from holdfast.trainer.differences import Differences
from holdfast.trainer.fill import Segment, fill
from holdfast.trainer.filling import copy, views_of
from holdfast.trainer.match import Matcher
from holdfast.trainer.move import is_plain_memory
from holdfast.trainer.per_rank import PerRank
from holdfast.trainer.picture import Picture
from holdfast.trainer.placing import Build
from holdfast.trainer.portions import Portion, portions
from holdfast.trainer.pour import Detour, pour
from holdfast.trainer.saved import Saved, SavedTensor, Source
from holdfast.trainer.selection import Selection
from holdfast.trainer.values import copyable
from holdfast.trainer.walk import DICTS, Walk


class LoadPlan:
    """A load that was found possible: `fill` or `fill_from`, then `finish`. If one of them raises, the live state is
    undefined and can be loaded again.

    Attributes:
        differences: what is not loaded, where that was allowed.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        copies: list[tuple[torch.Tensor, SavedTensor]],
        builds: list[Build],
        differences: Differences,
    ) -> None:
        self.differences = differences
        self._sources = sources
        self._builds = builds
        self._portions = [portion for live, found in copies for portion in portions(live, found)]

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

    def finish(self) -> None:
        """After a good `fill`: put plain values and optimizer settings in place, call every `load_state_dict`.

        Raises: LoadError: a `load_state_dict` of the user's failed.
        """
        for build in self._builds:
            build()

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


def plan_load(
    state: dict[str, Any],
    sources: Sequence[Source],
    *,
    rank: int,
    world_size: int,
    strict: bool = True,
    only: Collection[str] | Selection | None = None,
) -> LoadPlan:
    """Compare `state` with the checkpoint and plan how to fill it; nothing of the state is touched.

    Args:
        sources: all images of one checkpoint. Only their plain values are read here.
        strict: whether everything on one side must be on the other, and alike. If not, what fits is filled and the
            rest stands in the plan's `differences`.
        only: keys of the state to fill, or dotted names below them; None: all.

    Raises:
        StructureError: naming what is missing, unexpected or different; unless `strict` only if nothing fits at all.
        UnsupportedValueError: the state holds something that cannot be saved.
        CorruptError: the images contradict each other, or do not hold every byte.
    """
    live = Walk({}, {}, ask=False).run(state)
    picture = Picture.of(live.blocks)
    picture.tensors_of(picture.structure())  # refuses what could not have been saved
    selection = only if isinstance(only, Selection) else Selection(only)
    matcher = Matcher(Saved(sources), live, rank=rank, world_size=world_size, selection=selection)
    builds = matcher.top(state)
    matcher.note_unexpected()
    copies = _once_each(matcher)
    matcher.differences.check(fits=matcher.fits, strict=strict)
    return LoadPlan(sources, copies, [*matcher.first, *builds], matcher.differences)


def ranks_needed(state: dict[str, Any], before: int, *, rank: int, world_size: int) -> set[int]:
    """Whose plain values `plan_load` reads, of a checkpoint that `before` ranks saved: rank 0's, this rank's own, all
    where they are combined."""
    marks = list(_marks(state))
    ranks = {0}
    if marks and before == world_size:
        ranks.add(rank)
    elif any(callable(mark.on_resize) for mark in marks):
        ranks.update(range(before))
    return ranks


def _marks(x: Any) -> Iterable[PerRank]:
    if isinstance(x, PerRank):
        yield x
    elif type(x) in DICTS:
        for inner in x.values():
            yield from _marks(inner)
    elif type(x) in (list, tuple):
        for inner in x:
            yield from _marks(inner)


def _once_each(matcher: Matcher) -> list[tuple[torch.Tensor, SavedTensor]]:
    """The copies, tied tensors filled once. Tensors tied here that were two in the checkpoint are a difference."""
    first: dict[object, SavedTensor] = {}
    copies = []
    for live, found in matcher.copies:
        memory = dtensor.local_of(live)
        address = memory.data_ptr()
        key = (address, live.device, live.shape, memory.stride()) if address else id(live)
        if key not in first:
            first[key] = found
            copies.append((live, found))
        elif first[key] is not found:
            there = "a tensor of its own"
            matcher.differences.note("other", found.fqn, f"shares its memory with {first[key].fqn}", there)
    return copies


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
