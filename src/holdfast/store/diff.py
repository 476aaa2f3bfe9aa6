"""Compares two checkpoints: structure, then every tensor both have, wherever their pieces stand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from holdfast.errors import HoldfastError
from holdfast.format.numbers import has_numbers
from holdfast.model.manifest import Manifest, TensorRecord
from holdfast.model.rect import Rect
from holdfast.store.moments import Change
from holdfast.store.rects import pairs, parts
from holdfast.store.tensors import PART_BYTES, Images, StoredTensor, stored_tensor
from holdfast.store.verify import DAMAGE

Name = tuple[str, int | None]
"""Fully qualified name and, for a rank's own value, the rank."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of two checkpoints, and how to read its images."""

    manifest: Manifest
    images: Images

    def tensors(self, wanted: Callable[[str], bool]) -> dict[Name, TensorRecord]:
        return {(t.fqn, t.owner_rank): t for t in self.manifest.tensors if wanted(t.fqn)}


@dataclass(frozen=True, slots=True)
class Differences:
    """Of structure. `shapes`, `dtypes` and `ties` name tensors of both; `common` are those whose numbers compare."""

    only_first: tuple[TensorRecord, ...]
    only_second: tuple[TensorRecord, ...]
    shapes: tuple[tuple[TensorRecord, TensorRecord], ...]
    dtypes: tuple[tuple[TensorRecord, TensorRecord], ...]
    ties: tuple[tuple[TensorRecord, TensorRecord], ...]
    common: tuple[tuple[TensorRecord, TensorRecord], ...] = field(repr=False)

    @property
    def any(self) -> bool:
        return bool(self.only_first or self.only_second or self.shapes or self.dtypes or self.ties)


@dataclass(frozen=True, slots=True)
class TensorChange:
    """One tensor of both. `change` is of what could be read; `error` is the damage that cut it short."""

    first: TensorRecord
    second: TensorRecord
    change: Change
    numeric: bool = True
    error: HoldfastError | None = None


def compare_structure(first: Side, second: Side, *, wanted: Callable[[str], bool] = lambda fqn: True) -> Differences:
    """What the manifests say; no image is read. Tensors whose name is not `wanted` are passed over."""
    a, b = first.tensors(wanted), second.tensors(wanted)
    both = [(a[name], b[name]) for name in a if name in b]
    return Differences(
        only_first=tuple(a[n] for n in a if n not in b),
        only_second=tuple(b[n] for n in b if n not in a),
        shapes=tuple(p for p in both if p[0].shape != p[1].shape),
        dtypes=tuple(p for p in both if p[0].dtype != p[1].dtype),
        ties=tuple(p for p in both if p[0].alias_of != p[1].alias_of),
        common=tuple(p for p in both if p[0].shape == p[1].shape and not (p[0].alias_of and p[1].alias_of)),
    )


def compare_tensors(first: Side, second: Side, differences: Differences) -> Iterator[TensorChange]:
    """The change of every common tensor, in the order in which they stand in the first one's images.

    A damaged or missing image is the `error` of the tensors it holds, and the rest is compared.

    Raises: TierError when a tier failed, which says nothing of the bytes.
    """
    for pair in sorted(differences.common, key=lambda p: min((c.image for c in p[0].chunks), default=-1)):
        yield _compare(first, second, *pair)


def _compare(first: Side, second: Side, a: TensorRecord, b: TensorRecord) -> TensorChange:
    numeric = has_numbers(a.dtype) and has_numbers(b.dtype)
    change, error = Change(), None
    if numeric or a.dtype == b.dtype:
        try:
            x = stored_tensor(first.images, first.manifest, a)
            y = stored_tensor(second.images, second.manifest, b)
            _add_all(change, x, y, (a.dtype, b.dtype) if numeric else None)
        except DAMAGE as e:
            error = e
    return TensorChange(a, b, change, numeric, error)


def _add_all(change: Change, x: StoredTensor, y: StoredTensor, dtypes: tuple[str, str] | None) -> None:
    for i, j, rect in pairs(x.rects, y.rects):

        def fits(part: Rect, i: int = i, j: int = j) -> bool:
            return max(x.span_bytes(i, part), y.span_bytes(j, part)) <= PART_BYTES

        for part in parts(rect, fits):
            if dtypes is None:
                change.add_bytes(x.read(i, part), y.read(j, part))
            else:
                change.add(x.read(i, part), y.read(j, part), dtypes)
