"""Rectangles of tensors, in any number of dimensions."""

from __future__ import annotations

import math
from typing import NamedTuple


class Rect(NamedTuple):
    """`lengths` elements from `offsets` on, per dimension of the global tensor; that of a 0-dim one has one element."""

    offsets: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many elements."""
        return math.prod(self.lengths)

    @property
    def stops(self) -> tuple[int, ...]:
        return tuple([o + n for o, n in zip(*self, strict=True)])

    def meet(self, other: Rect) -> Rect | None:
        """What both have in common; None if that is nothing."""
        offsets, lengths = [], []
        for offset, length, other_offset, other_length in zip(*self, *other, strict=True):
            start, stop = max(offset, other_offset), min(offset + length, other_offset + other_length)
            if start >= stop:
                return None
            offsets.append(start)
            lengths.append(stop - start)
        return Rect(tuple(offsets), tuple(lengths))

    def span(self, inner: Rect) -> tuple[int, int]:
        """Where the elements of `inner` begin and stop among those of this one, counted row by row."""
        first = last = 0
        for offset, length, at, n in zip(*self, *inner, strict=True):
            first, last = first * length + at - offset, last * length + at - offset + n - 1
        return first, last + 1
