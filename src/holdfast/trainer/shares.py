"""Who stages what: each rank its share of what it and its replicas hold. A pure function of all ranks' structures.

Every rank computes the same answer from the same tables, so nothing more is exchanged. Who holds which rectangle of a
tensor is read from the tables, never guessed from a mesh.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from holdfast.errors import CorruptError, ReplicaMismatchError
from holdfast.format.manifest.coverage import Work, first_hole, first_overlap
from holdfast.model.image import Piece
from holdfast.model.rect import Rect
from holdfast.trainer.structure import Structure, TensorSpec, cells, whole_box

WHOLE_BELOW_BYTES = 1 << 20
"""A smaller tensor, or part of one, is never cut: entries would outnumber the bytes they describe."""

Holders = tuple[int, ...]
Having = tuple[tuple[int, int | None], ...]
"""(table, which of its cuts) of a tensor, for each distinct table that has it"""


@dataclass(frozen=True, slots=True)
class _Held:
    """A rectangle of a tensor that the same ranks hold completely, and no other rank holds a part of."""

    fqn: str
    spec: TensorSpec
    rect: Rect

    @property
    def nbytes(self) -> int:
        return self.spec.itemsize * self.rect.size

    def piece(self, rect: Rect | None = None) -> Piece:
        offsets, lengths = rect or self.rect
        spec = self.spec
        return Piece(self.fqn, offsets, lengths, spec.shape, spec.dtype, spec.itemsize, form=spec.form)


class Shares:
    """The pieces and aliases of each rank's image.

    Splittable rectangles with the same holders are laid on one line and cut into equal parts at row borders; all others
    come whole from their first holder; `own` tensors from their owner.

    Raises:
        ReplicaMismatchError: ranks disagree on the shape, dtype, kind or ties of a tensor, or none holds some of it.
    """

    def __init__(self, structures: Sequence[Structure]) -> None:
        self._structures = structures
        # Ranks with the same table are looked at once: at 10,000 ranks there are few distinct ones.
        ranks: dict[int, list[int]] = {}
        for rank, structure in enumerate(structures):
            ranks.setdefault(id(structure.shared), []).append(rank)
        self._members = list(ranks.values())
        self._ties = _aliases(structures)
        self._tensors = self._agreed()
        self._known: dict[tuple[tuple[int, ...], Having], dict[Rect, Holders]] = {}
        self._of_rank: dict[int, dict[tuple[tuple[int, ...], Having], list[Rect]]] = {}
        for fqn, (spec, having) in self._tensors.items():
            self._holders(fqn, spec, having)

    def pieces(self, rank: int) -> tuple[Piece, ...]:
        """In the order in which they stand in the image."""
        found: list[Piece] = []
        for holders, held in self._lines(rank).items():
            line = [h for h in held if h.spec.splittable]
            found += [piece for holder, piece in _cut(line, holders) if holder == rank]
            found += [h.piece() for h in held if not h.spec.splittable and holders[0] == rank]
        return (*found, *_own(self._structures[rank], rank))

    def aliases(self, rank: int) -> tuple[tuple[str, str], ...]:
        """(further name, first name) of each tied tensor of which the rank stages a piece."""
        names = {piece.fqn for piece in self.pieces(rank)}
        return tuple((alias, target) for alias, target in self._ties.items() if target in names)

    def replicated(self, rank: int) -> list[Piece]:
        """The splittable rectangles that the rank holds together with others."""
        lines = self._lines(rank).items()
        return [h.piece() for holders, held in lines if len(holders) > 1 for h in held if h.spec.splittable]

    # -- holders ------------------------------------------------------------------------------------------------------
    def _lines(self, rank: int) -> dict[Holders, list[_Held]]:
        """What the rank holds, by holders; each of these sees the same line in the same order."""
        lines: dict[Holders, list[_Held]] = {}
        for fqn, (spec, having) in self._tensors.items():
            holders = self._known[spec.shape, having]
            for rect in self._of_rank.get(rank, {}).get((spec.shape, having), ()):
                lines.setdefault(holders[rect], []).append(_Held(fqn, spec, rect))
        return lines

    def _agreed(self) -> dict[str, tuple[TensorSpec, Having]]:
        """Shared tensors and who has them, in the order of the first rank that has each."""
        seen: dict[str, tuple[TensorSpec, list[tuple[int, int | None]]]] = {}
        for t, members in enumerate(self._members):
            for fqn, spec in self._structures[members[0]].shared.items():
                if fqn in self._ties:  # its shard is empty here, so that the tie does not show
                    continue
                first, having = seen.setdefault(fqn, (spec.whole, []))
                if first != spec.whole:
                    raise _mismatch(fqn, self._members[having[0][0]][0], first, members[0], spec)
                having.append((t, spec.cut))
        return {fqn: (spec, tuple(having)) for fqn, (spec, having) in seen.items()}

    def _holders(self, fqn: str, spec: TensorSpec, having: Having) -> None:
        """Note which ranks hold which rectangle of tensors of that shape, had in that way."""
        key = (spec.shape, having)
        if key in self._known:
            return
        found: dict[Rect, list[int]] = {}
        for t, cut in having:
            for rank in self._members[t]:
                boxes = self._structures[rank].cuts[cut] if cut is not None else (whole_box(spec.shape),)
                for box in boxes:
                    found.setdefault(box.rect, []).append(rank)
        try:
            found = _apart(found, spec.shape)
        except CorruptError as e:
            raise _no_layout(fqn, e.message) from None
        self._known[key] = {rect: tuple(sorted(ranks)) for rect, ranks in sorted(found.items())}
        for rect, ranks in self._known[key].items():
            for rank in ranks:
                self._of_rank.setdefault(rank, {}).setdefault(key, []).append(rect)


def assign(structures: Sequence[Structure]) -> Shares:
    """The shares of all ranks; `structures[rank]` may share its tensors with many ranks. Raises: see Shares."""
    return Shares(structures)


def unsplit(structure: Structure, rank: int) -> tuple[tuple[Piece, ...], tuple[tuple[str, str], ...]]:
    """The share of a rank whose structure changed after tables were exchanged: everything it holds.

    Which ranks changed alike it cannot know without asking, so nothing is left to another: bytes stand several times,
    and none is missing.
    """
    held = [
        _Held(fqn, spec, box.rect).piece() for fqn, spec in structure.shared.items() for box in structure.boxes(spec)
    ]
    return (*held, *_own(structure, rank)), tuple(structure.aliases.items())


def _own(structure: Structure, rank: int) -> list[Piece]:
    return [
        Piece(fqn, (0,) * len(spec.shape), spec.shape, spec.shape, spec.dtype, spec.itemsize, rank, spec.form)
        for fqn, spec in structure.own.items()
    ]


def _apart(found: dict[Rect, list[int]], shape: tuple[int, ...]) -> dict[Rect, list[int]]:
    """Rectangles that overlap cut along each other's borders, so that each has its holders.

    Raises: CorruptError: one element is in none, or they are too irregular.
    """
    hole = first_hole(found, shape, Work(len(found)))
    if hole is not None:
        raise CorruptError(f"no rank holds element {list(hole)}")
    if len(found) == 1 or first_overlap(found, Work(len(found))) is None:
        return found
    smaller: dict[Rect, list[int]] = {}
    work = Work(len(found))
    for cell in cells(set(found)):
        work.pay(len(found))
        smaller[cell] = sorted({rank for rect, ranks in found.items() if cell.meet(rect) for rank in ranks})
    return smaller


def _aliases(structures: Sequence[Structure]) -> dict[str, str]:
    """All ties. Raises: ReplicaMismatchError where ranks tie differently."""
    found: dict[str, str] = {}
    distinct = {id(s): (rank, s) for rank, s in reversed(list(enumerate(structures)))}
    for rank, structure in distinct.values():
        for alias, target in structure.aliases.items():
            if found.setdefault(alias, target) != target:
                raise _tied_differently(alias, rank)
    for rank, structure in distinct.values():
        for alias in structure.shared.keys() & found.keys():
            if structure.boxes(structure.shared[alias]):
                raise _tied_differently(alias, rank)
    return found


def _mismatch(fqn: str, rank: int, spec: TensorSpec, other: int, other_spec: TensorSpec) -> ReplicaMismatchError:
    one, two = (f"{s.kind} {s.dtype} {list(s.shape)}" for s in (spec, other_spec))
    return ReplicaMismatchError(
        f"{fqn!r} is {one} on rank {rank} and {two} on rank {other}",
        hint="give tensors that differ by rank names of their own, or mark them with holdfast.per_rank(...)",
    )


def _no_layout(fqn: str, why: str) -> ReplicaMismatchError:
    return ReplicaMismatchError(
        f"{fqn!r} cannot be put together from its shards: {why}",
        hint="every rank of its device mesh has to be one of the ranks that save together (see group=)",
    )


def _tied_differently(alias: str, rank: int) -> ReplicaMismatchError:
    return ReplicaMismatchError(
        f"{alias!r} shares memory with another tensor on some ranks but not in the same way on rank {rank}",
        hint="tie the same parameters on every rank",
    )


# Cutting -------------------------------------------------------------------------------------------------------------
def _cut(line: Sequence[_Held], holders: Holders) -> Iterator[tuple[int, Piece]]:
    """Lay the rectangles end to end and cut the line into equal parts, each border moved to the nearest row border."""
    n = len(holders)
    total = sum(held.nbytes for held in line)
    at = 0
    part = 0
    for held in line:
        size = held.nbytes
        step = _row_bytes(held) or 1
        done = 0
        while done < size:
            while part < n - 1 and _nearest(total * (part + 1) // n - at, step, size) <= done:
                part += 1
            stop = size if part == n - 1 else _nearest(total * (part + 1) // n - at, step, size)
            yield holders[part], held.piece(_rows(held, done, stop))
            done = stop
        if size == 0:
            yield holders[part], held.piece()
        at += size


def _row_dim(held: _Held) -> int | None:
    """The dimension along which a rectangle may be cut: the first one that has more than one row."""
    if held.nbytes < WHOLE_BELOW_BYTES:
        return None
    return next((dim for dim, length in enumerate(held.rect.lengths) if length > 1), None)


def _row_bytes(held: _Held) -> int:
    """Bytes between two places where it may be cut: its size where it may not."""
    dim = _row_dim(held)
    return held.nbytes if dim is None else held.nbytes // held.rect.lengths[dim]


def _nearest(border: int, step: int, size: int) -> int:
    """The multiple of `step` within [0, size] nearest to `border`."""
    return max(0, min(size, (2 * border + step) // (2 * step) * step))


def _rows(held: _Held, start: int, stop: int) -> Rect:
    """The rows that the bytes [start, stop) are."""
    dim = _row_dim(held)
    if dim is None or stop - start == held.nbytes:
        return held.rect
    row = _row_bytes(held)
    offsets, lengths = map(list, held.rect)
    offsets[dim] += start // row
    lengths[dim] = (stop - start) // row
    return Rect(tuple(offsets), tuple(lengths))
