"""Whether rectangles cover a tensor completely, and whether two of them overlap. Exact, in any number of dimensions.

Work is bounded: a set of rectangles too fragmented to be judged within `MAX_WORK` comparisons is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from holdfast.errors import CorruptError

MAX_WORK = 20_000_000

Rect = tuple[tuple[int, ...], tuple[int, ...]]
"""(offsets, lengths)"""


def first_hole(rects: Iterable[Rect], shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The first element of a tensor that no rectangle covers; None if there is none.

    Raises:
        CorruptError: the rectangles are too fragmented.
    """
    if 0 in shape:
        return None
    distinct = {rect for rect in rects if 0 not in rect[1]}
    if any(lengths == shape for _, lengths in distinct):
        return None
    return _Sweep().hole(list(distinct), shape, 0)


def first_overlap(rects: Sequence[Rect]) -> tuple[Rect, Rect] | None:
    """Two rectangles that share an element; None if there are none.

    Raises:
        CorruptError: the rectangles are too fragmented.
    """
    work = 0
    active: list[Rect] = []
    for rect in sorted(r for r in rects if 0 not in r[1]):
        if rect[0]:
            active = [a for a in active if a[0][0] + a[1][0] > rect[0][0]]
        work += len(active) + 1
        if work > MAX_WORK:
            raise CorruptError("a tensor is cut into too many pieces to be checked")
        for other in active:
            if _overlap(rect, other):
                return other, rect
        active.append(rect)
    return None


def _overlap(a: Rect, b: Rect) -> bool:
    return all(ao < bo + bn and bo < ao + an for ao, an, bo, bn in zip(a[0], a[1], b[0], b[1], strict=True))


class _Sweep:
    """Goes through the slabs of one dimension after the other, never through the same set of rectangles twice."""

    def __init__(self) -> None:
        self.work = 0

    def hole(self, rects: list[Rect], shape: tuple[int, ...], dim: int) -> tuple[int, ...] | None:
        if dim == len(shape):
            return None if rects else ()
        size = shape[dim]
        if not rects:
            return (0,) * (len(shape) - dim)
        begins: dict[int, list[Rect]] = {}
        borders = {0, size}
        for rect in rects:
            lo, hi = rect[0][dim], rect[0][dim] + rect[1][dim]
            begins.setdefault(lo, []).append(rect)
            borders.update((lo, hi))
        cuts = sorted(borders)
        active: list[Rect] = []
        seen: set[frozenset[Rect]] = set()
        for lo in cuts[:-1]:
            active = [r for r in active if r[0][dim] + r[1][dim] > lo] + begins.get(lo, [])
            self._pay(len(active) + 1)
            below = frozenset((r[0][dim + 1 :], r[1][dim + 1 :]) for r in active)
            if below in seen:
                continue
            seen.add(below)
            hole = self.hole([((0,) * (dim + 1) + o, (0,) * (dim + 1) + n) for o, n in below], shape, dim + 1)
            if hole is not None:
                return (lo, *hole)
        return None

    def _pay(self, work: int) -> None:
        self.work += work
        if self.work > MAX_WORK:
            raise CorruptError("a tensor is cut into too many pieces to be checked")
