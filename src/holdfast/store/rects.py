"""Many rectangles of a tensor: where they meet, what is left of them, and parts small enough to hold in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from holdfast.model.rect import Rect


def without(rect: Rect, taken: Rect) -> Iterator[Rect]:
    """What is left of `rect` where `taken` is cut out of it, as rectangles that do not overlap."""
    common = rect.meet(taken)
    if common is None:
        yield rect
        return
    offsets, lengths = list(rect.offsets), list(rect.lengths)
    for dim, (start, stop) in enumerate(zip(common.offsets, common.stops, strict=True)):
        for a, b in ((offsets[dim], start), (stop, offsets[dim] + lengths[dim])):
            if b > a:
                yield Rect(
                    (*offsets[:dim], a, *offsets[dim + 1 :]),
                    (*lengths[:dim], b - a, *lengths[dim + 1 :]),
                )
        offsets[dim], lengths[dim] = start, stop - start


def disjoint(rects: Iterable[Rect]) -> list[tuple[int, Rect]]:
    """Every element once: (index, rectangle) where that is `rects[index]`, or what earlier ones left of it."""
    found: list[tuple[int, Rect]] = []
    seen: set[Rect] = set()
    for index, rect in enumerate(rects):
        if rect in seen or not rect.size:
            continue
        seen.add(rect)
        left = [rect]
        for other in _meeting(rect, [b for _, b in found]):
            left = [part for b in left for part in without(b, found[other][1])]
        found += [(index, part) for part in left]
    return found


def pairs(first: list[tuple[int, Rect]], second: list[tuple[int, Rect]]) -> Iterator[tuple[int, int, Rect]]:
    """Where rectangles of two lists meet: (index in one, index in the other, what they have in common)."""
    same = {rect: index for index, rect in second}
    others = [rect for _, rect in second]
    for index, rect in first:
        if rect in same:
            yield index, same[rect], rect
            continue
        for other in _meeting(rect, others):
            common = rect.meet(others[other])
            if common is not None:
                yield index, second[other][0], common


def _meeting(rect: Rect, others: list[Rect]) -> list[int]:
    """Which of `others` meet it; in one sweep, because a tensor may have thousands of pieces."""
    if not others or not rect.offsets:
        return list(range(len(others)))
    starts = np.array([b.offsets for b in others], np.int64)
    stops = starts + np.array([b.lengths for b in others], np.int64)
    meet = (np.array(rect.offsets) < stops).all(1) & (starts < np.array(rect.stops)).all(1)
    return [int(i) for i in np.flatnonzero(meet)]


def parts(rect: Rect, fits: Callable[[Rect], bool]) -> Iterator[Rect]:
    """The rectangle in parts that fit, in row order. A part of one element is given even if it does not."""
    dim = next((d for d, n in enumerate(rect.lengths) if n > 1), None)
    if dim is None or fits(rect):
        yield rect
        return
    half = rect.lengths[dim] // 2
    for start, n in ((0, half), (half, rect.lengths[dim] - half)):
        offsets = (*rect.offsets[:dim], rect.offsets[dim] + start, *rect.offsets[dim + 1 :])
        yield from parts(Rect(offsets, (*rect.lengths[:dim], n, *rect.lengths[dim + 1 :])), fits)
