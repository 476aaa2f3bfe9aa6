"""Fills a live state from the images of a checkpoint: first everything is compared, then everything is copied.

Tensors are filled in place, pieces assembled in their tensor; what has no live counterpart is allocated. Plain values,
optimizer settings and `load_state_dict` come last.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch

from holdfast.format.nested import DICTS
from holdfast.trainer import dtensor
from holdfast.trainer.differences import Differences
from holdfast.trainer.match import Matcher
from holdfast.trainer.per_rank import PerRank
from holdfast.trainer.picture import Picture
from holdfast.trainer.placing import Build
from holdfast.trainer.portions import Filling, filling_of
from holdfast.trainer.saved import Saved, SavedTensor, Source
from holdfast.trainer.selection import Selection
from holdfast.trainer.walk import Walk


class LoadPlan:
    """A load that was found possible: fill `filling`, then `finish`. If one of the two raises, the live state is
    undefined and can be loaded again.

    Attributes:
        filling: what of the images belongs into the live tensors.
        differences: what is not loaded, where that was allowed.
    """

    def __init__(self, filling: Filling, builds: list[Build], differences: Differences) -> None:
        self.filling = filling
        self.differences = differences
        self._builds = builds

    def finish(self) -> None:
        """After a good filling: put plain values and optimizer settings in place, call every `load_state_dict`.

        Raises: LoadError: a `load_state_dict` of the user's failed.
        """
        for build in self._builds:
            build()


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
    return LoadPlan(filling_of(sources, copies), [*matcher.first, *builds], matcher.differences)


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
