"""What a rank's state consists of: names, shapes, dtypes, ties. Values without tensors, as ranks exchange them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import msgspec

Kind = Literal["parameter", "buffer", "optimizer", "other"]
SPLITTABLE: frozenset[Kind] = frozenset({"parameter", "optimizer"})
"""Only these are the same bytes on every replica: batch-norm statistics differ by rank."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor as the image will describe it. `dtype` is torch's name without the prefix."""

    shape: tuple[int, ...]
    dtype: str
    itemsize: int
    kind: Kind
    form: str | None = None
    """As `Piece.form`."""

    @property
    def splittable(self) -> bool:
        return self.kind in SPLITTABLE

    @property
    def nbytes(self) -> int:
        return self.itemsize * math.prod(self.shape)


@dataclass(frozen=True)
class Structure:
    """All tensors of a rank, in the order they were found.

    `shared` are those that replicas have in common, `own` those marked `per_rank`; `aliases` maps the further names of
    a shared tensor to its first. Never changed after it was made: the digest is computed once.
    """

    shared: Mapping[str, TensorSpec]
    own: Mapping[str, TensorSpec]
    aliases: Mapping[str, str]

    @cached_property
    def digest(self) -> str:
        """Equal exactly when two structures are equal, order included."""
        rows = [[(n, s.shape, s.dtype, s.kind, *_form(s)) for n, s in part.items()] for part in (self.shared, self.own)]
        encoded = msgspec.json.encode([rows, list(self.aliases.items())])
        return hashlib.blake2b(encoded, digest_size=16).hexdigest()

    @property
    def nbytes(self) -> int:
        return sum(s.nbytes for part in (self.shared, self.own) for s in part.values())


def _form(spec: TensorSpec) -> tuple[str, ...]:
    return () if spec.form is None else (spec.form,)
