"""What a rank's state consists of: names, shapes, dtypes, ties, boxes. Without tensors, as ranks exchange it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Literal

import msgspec

from holdfast.model.rect import Rect

Kind = Literal["parameter", "buffer", "optimizer", "other"]
SPLITTABLE: frozenset[Kind] = frozenset({"parameter", "optimizer"})
"""Only these are the same bytes on every replica: batch-norm statistics differ by rank."""


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of a global tensor that a rank holds; `at` is where it begins in the rank's local tensor."""

    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    at: tuple[int, ...]

    @property
    def rect(self) -> Rect:
        return Rect(self.offsets, self.lengths)


Boxes = tuple[Box, ...]
"""All that a rank holds of one tensor; nothing where its shard is empty. No two of them overlap."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor as the image will describe it. `dtype` is torch's name without the prefix.

    `shape` is that of the global tensor. `cut` says which of the structure's `cuts` the rank holds; None: all of it.
    """

    shape: tuple[int, ...]
    dtype: str
    itemsize: int
    kind: Kind
    form: str | None = None
    """As `Piece.form`."""
    cut: int | None = None

    @property
    def splittable(self) -> bool:
        return self.kind in SPLITTABLE

    @property
    def nbytes(self) -> int:
        """Of the global tensor."""
        return self.itemsize * math.prod(self.shape)

    @property
    def whole(self) -> TensorSpec:
        """What ranks that hold other boxes of the tensor have in common."""
        return self if self.cut is None else replace(self, cut=None)


@dataclass(frozen=True)
class Structure:
    """All tensors of a rank, in the order they were found.

    `shared` are those that replicas have in common, `own` those marked `per_rank`; `aliases` maps the further names of
    a shared tensor to its first. `cuts` are the distinct boxes the rank holds of its sharded tensors: a few, for most
    tensors are cut in the same way, and all in which ranks of one mesh differ. Never changed after it was made: the
    digests are computed once.
    """

    shared: Mapping[str, TensorSpec]
    own: Mapping[str, TensorSpec]
    aliases: Mapping[str, str]
    cuts: tuple[Boxes, ...] = ()

    @cached_property
    def outline(self) -> str:
        """Digest of everything but `cuts`: equal exactly when the rest of two structures is, order included."""
        rows = [
            [(n, s.shape, s.dtype, s.kind, s.form, s.cut) for n, s in part.items()] for part in (self.shared, self.own)
        ]
        return _digest([rows, list(self.aliases.items())])

    @cached_property
    def digest(self) -> str:
        """Equal exactly when two structures are equal, order included."""
        cuts = [[(p.offsets, p.lengths, p.at) for p in boxes] for boxes in self.cuts]
        return _digest([self.outline, cuts]) if cuts else self.outline

    def cut_as(self, cuts: tuple[Boxes, ...]) -> Structure:
        """The structure of a rank that has the same outline and other boxes."""
        return self if cuts == self.cuts else Structure(self.shared, self.own, self.aliases, cuts)

    def boxes(self, spec: TensorSpec) -> Boxes:
        """What the rank holds of one of its tensors."""
        return (whole_box(spec.shape),) if spec.cut is None else self.cuts[spec.cut]

    def boxes_of(self, fqn: str) -> Boxes:
        """What the rank holds of a shared tensor."""
        return self.boxes(self.shared[fqn])


def whole_box(shape: tuple[int, ...]) -> Box:
    """A tensor that is held completely."""
    start = (0,) * len(shape)
    return Box(start, shape, start)


def cells(rects: set[Rect]) -> Iterator[Rect]:
    """The smallest boxes between all borders of some rectangles; each of these is made of such boxes."""
    dims = len(next(iter(rects))[0])
    borders = [sorted({edge for o, n in rects for edge in (o[d], o[d] + n[d])}) for d in range(dims)]
    yield from _grid([list(pairwise(line)) for line in borders])


def _grid(lines: list[list[tuple[int, int]]]) -> Iterator[Rect]:
    if not lines:
        yield Rect((), ())
        return
    for start, stop in lines[0]:
        for offsets, lengths in _grid(lines[1:]):
            yield Rect((start, *offsets), (stop - start, *lengths))


def _digest(value: object) -> str:
    return hashlib.blake2b(msgspec.json.encode(value), digest_size=16).hexdigest()
