"""Hyper-rectangles of a tensor: where pieces meet, what is left of them, and parts small enough to hold in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Box:
    """`lengths` elements from `offsets` on, per dimension. A box of a 0-dim tensor has one element."""

    offsets: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def count(self) -> int:
        return math.prod(self.lengths)

    @property
    def stops(self) -> tuple[int, ...]:
        return tuple(o + n for o, n in zip(self.offsets, self.lengths, strict=True))

    def meet(self, other: Box) -> Box | None:
        """What both have in common."""
        offsets = tuple(map(max, self.offsets, other.offsets))
        lengths = tuple(b - a for a, b in zip(offsets, map(min, self.stops, other.stops), strict=True))
        return None if any(n <= 0 for n in lengths) else Box(offsets, lengths)

    def span(self, inner: Box) -> tuple[int, int]:
        """Where the elements of `inner` begin and stop among those of this box, counted row by row."""
        first = last = 0
        for size, offset, at, n in zip(self.lengths, self.offsets, inner.offsets, inner.lengths, strict=True):
            first, last = first * size + at - offset, last * size + at - offset + n - 1
        return first, last + 1


def without(box: Box, taken: Box) -> Iterator[Box]:
    """What is left of `box` where `taken` is cut out of it, as boxes that do not overlap."""
    common = box.meet(taken)
    if common is None:
        yield box
        return
    offsets, lengths = list(box.offsets), list(box.lengths)
    for dim, (start, stop) in enumerate(zip(common.offsets, common.stops, strict=True)):
        for a, b in ((offsets[dim], start), (stop, offsets[dim] + lengths[dim])):
            if b > a:
                yield Box(
                    (*offsets[:dim], a, *offsets[dim + 1 :]),
                    (*lengths[:dim], b - a, *lengths[dim + 1 :]),
                )
        offsets[dim], lengths[dim] = start, stop - start


def disjoint(boxes: Iterable[Box]) -> list[tuple[int, Box]]:
    """Every element once: (index, box) where the box is of `boxes[index]`, or what earlier ones left of it."""
    found: list[tuple[int, Box]] = []
    seen: set[Box] = set()
    for index, box in enumerate(boxes):
        if box in seen or not box.count:
            continue
        seen.add(box)
        left = [box]
        for other in _meeting(box, [b for _, b in found]):
            left = [part for b in left for part in without(b, found[other][1])]
        found += [(index, part) for part in left]
    return found


def pairs(first: list[tuple[int, Box]], second: list[tuple[int, Box]]) -> Iterator[tuple[int, int, Box]]:
    """Where boxes of two lists meet: (index in one, index in the other, what they have in common)."""
    same = {box: index for index, box in second}
    others = [box for _, box in second]
    for index, box in first:
        if box in same:
            yield index, same[box], box
            continue
        for other in _meeting(box, others):
            common = box.meet(others[other])
            if common is not None:
                yield index, second[other][0], common


def _meeting(box: Box, others: list[Box]) -> list[int]:
    """Which of `others` meet it; in one sweep, because a tensor may have thousands of pieces."""
    if not others or not box.offsets:
        return list(range(len(others)))
    starts = np.array([b.offsets for b in others], np.int64)
    stops = starts + np.array([b.lengths for b in others], np.int64)
    meet = (np.array(box.offsets) < stops).all(1) & (starts < np.array(box.stops)).all(1)
    return [int(i) for i in np.flatnonzero(meet)]


def parts(box: Box, fits: Callable[[Box], bool]) -> Iterator[Box]:
    """The box in parts that fit, in row order. A part of one element is given even if it does not."""
    dim = next((d for d, n in enumerate(box.lengths) if n > 1), None)
    if dim is None or fits(box):
        yield box
        return
    half = box.lengths[dim] // 2
    for start, n in ((0, half), (half, box.lengths[dim] - half)):
        offsets = (*box.offsets[:dim], box.offsets[dim] + start, *box.offsets[dim + 1 :])
        yield from parts(Box(offsets, (*box.lengths[:dim], n, *box.lengths[dim + 1 :])), fits)
