"""Whether the images hold every element of every tensor. Exact, in any number of dimensions.

Work is bounded in proportion to the number of chunks: cutting a tensor along its dimensions, evenly or not, stays far
below the bound; rectangles strewn so that each must be held against each other are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from holdfast.errors import CorruptError
from holdfast.model.manifest import TensorRecord

Pair = tuple[tuple[int, ...], tuple[int, ...]]
"""(offsets, lengths), as `Rect` is, too; bare where they are made by the hundred thousand"""

_WORK_PER_CHUNK = 64
_WORK_ANYWAY = 1_000_000


class Work:
    """How many comparisons are left."""

    def __init__(self, chunks: int) -> None:
        self.left = _WORK_ANYWAY + _WORK_PER_CHUNK * chunks

    def pay(self, comparisons: int) -> None:
        """Spend some. Raises: CorruptError when none are left."""
        self.left -= comparisons
        if self.left < 0:
            raise CorruptError("tensors are cut into pieces too irregular to be checked")


def check_coverage(tensors: Sequence[TensorRecord]) -> None:
    """Refuse tensors that are not completely there.

    Rectangles of different images may overlap (replicas, saved unsplit); those of one image may not.

    Raises:
        CorruptError: naming the first hole.
    """
    work = Work(sum(len(t.chunks) for t in tensors))
    for tensor in tensors:
        if tensor.alias_of is not None:
            continue
        hole = first_hole(((c.offsets, c.lengths) for c in tensor.chunks), tensor.shape, work)
        if hole is not None:
            raise CorruptError(f"no image holds element {hole} of {tensor.fqn!r}, whose shape is {tensor.shape}")
        by_image: dict[int, list[Pair]] = {}
        for chunk in tensor.chunks:
            by_image.setdefault(chunk.image, []).append((chunk.offsets, chunk.lengths))
        for rects in by_image.values():
            if len(rects) > 1 and first_overlap(rects, work) is not None:
                raise CorruptError(f"one image holds overlapping pieces of {tensor.fqn!r}")


def first_hole(rects: Iterable[Pair], shape: tuple[int, ...], work: Work) -> tuple[int, ...] | None:
    """The first element of a tensor that no rectangle covers; None if there is none.

    Raises:
        CorruptError: the rectangles are too irregular.
    """
    if 0 in shape:
        return None
    distinct = {rect for rect in rects if 0 not in rect[1]}
    if any(lengths == shape for _, lengths in distinct):
        return None
    return _hole(distinct, shape, work)


def _hole(rects: Iterable[Pair], shape: tuple[int, ...], work: Work) -> tuple[int, ...] | None:
    """Cut the first dimension at every border; each slab is a tensor of the others, looked at once per set of rects."""
    begins: dict[int, list[Pair]] = {}
    borders = {0}
    for rect in rects:
        begin = rect[0][0] if shape else 0
        begins.setdefault(begin, []).append(rect)
        if shape:
            borders.update((begin, begin + rect[1][0]))
    if not shape:
        return None if begins else ()
    active: list[Pair] = []
    seen: set[frozenset[Pair]] = set()
    for border in sorted(borders - {shape[0]}):
        active = [r for r in active if r[0][0] + r[1][0] > border] + begins.get(border, [])
        work.pay(len(active) + 1)
        slab = frozenset([(offsets[1:], lengths[1:]) for offsets, lengths in active])
        if slab not in seen:
            seen.add(slab)
            rest = _hole(slab, shape[1:], work)
            if rest is not None:
                return (border, *rest)
    return None


def first_overlap(rects: Iterable[Pair], work: Work) -> tuple[Pair, Pair] | None:
    """Two rectangles that share an element; None if there are none.

    Raises:
        CorruptError: the rectangles are too irregular.
    """
    active: list[Pair] = []
    for rect in sorted(r for r in rects if 0 not in r[1]):
        if rect[0]:
            active = [a for a in active if a[0][0] + a[1][0] > rect[0][0]]
        work.pay(len(active) + 1)
        other = next((a for a in active if _overlap(a, rect)), None)
        if other is not None:
            return other, rect
        active.append(rect)
    return None


def _overlap(a: Pair, b: Pair) -> bool:
    return all(ao < bo + bn and bo < ao + an for ao, an, bo, bn in zip(*a, *b, strict=True))
