"""Who stages what: each rank its share of what it and its replicas hold. A pure function of all ranks' structures.

Every rank computes the same answer from the same tables, so nothing more is exchanged. Who holds a tensor is read from
the tables, never guessed from a mesh.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from holdfast.errors import ReplicaMismatchError
from holdfast.model.image import Piece
from holdfast.trainer.structure import Structure, TensorSpec

WHOLE_BELOW_BYTES = 1 << 20
"""A smaller tensor is never cut: entries would outnumber the bytes they describe."""

Holders = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Shares:
    """The pieces and aliases of each rank's image."""

    _pieces: tuple[tuple[Piece, ...], ...]
    _aliases: tuple[tuple[tuple[str, str], ...], ...]

    def pieces(self, rank: int) -> tuple[Piece, ...]:
        """In the order in which they stand in the image."""
        return self._pieces[rank]

    def aliases(self, rank: int) -> tuple[tuple[str, str], ...]:
        """(further name, first name) of each tied tensor of which the rank stages a piece."""
        return self._aliases[rank]


def assign(structures: Sequence[Structure]) -> Shares:
    """The shares of all ranks; `structures[rank]` may be one object for many ranks.

    Splittable tensors with the same holders are laid on one line and cut into equal parts at row borders; all others
    come whole from their first holder; `own` tensors from their owner.

    Raises:
        ReplicaMismatchError: ranks disagree on the shape, dtype, kind or ties of a tensor.
    """
    pieces: list[list[Piece]] = [[] for _ in structures]
    for holders, tensors in _by_holders(structures).items():
        line = [(fqn, spec) for fqn, spec in tensors if spec.splittable]
        for rank, piece in _cut(line, holders):
            pieces[rank].append(piece)
        pieces[holders[0]] += [_whole(fqn, spec) for fqn, spec in tensors if not spec.splittable]
    for rank, structure in enumerate(structures):
        pieces[rank] += _own(structure, rank)
    aliases = _aliases(structures)
    names = [{piece.fqn for piece in part} for part in pieces]
    return Shares(
        tuple(tuple(part) for part in pieces),
        tuple(tuple((a, t) for a, t in aliases.items() if t in held) for held in names),
    )


def unsplit(structure: Structure, rank: int) -> tuple[tuple[Piece, ...], tuple[tuple[str, str], ...]]:
    """The share of a rank whose structure changed after tables were exchanged: everything it holds.

    Which ranks changed alike it cannot know without asking, so nothing is left to another: bytes stand several times,
    and none is missing.
    """
    whole = [_whole(fqn, spec) for fqn, spec in structure.shared.items()]
    return (*whole, *_own(structure, rank)), tuple(structure.aliases.items())


def _own(structure: Structure, rank: int) -> list[Piece]:
    return [_whole(fqn, spec, owner=rank) for fqn, spec in structure.own.items()]


def _whole(fqn: str, spec: TensorSpec, owner: int | None = None) -> Piece:
    return Piece(fqn, (0,) * len(spec.shape), spec.shape, spec.shape, spec.dtype, spec.itemsize, owner, spec.form)


# Holders -------------------------------------------------------------------------------------------------------------
def _by_holders(structures: Sequence[Structure]) -> dict[Holders, list[tuple[str, TensorSpec]]]:
    """Shared tensors by the ranks that hold them, in the order of the first rank that has each."""
    # Ranks with the same table are looked at once: at 10,000 ranks there are few distinct ones.
    ranks: dict[int, list[int]] = {}
    for rank, structure in enumerate(structures):
        ranks.setdefault(id(structure), []).append(rank)
    tables = [structures[same[0]] for same in ranks.values()]
    members = list(ranks.values())
    seen: dict[str, tuple[TensorSpec, list[int]]] = {}
    for t, table in enumerate(tables):
        for fqn, spec in table.shared.items():
            found = seen.setdefault(fqn, (spec, []))
            if found[0] != spec:
                raise _mismatch(fqn, members[found[1][0]][0], found[0], members[t][0], spec)
            found[1].append(t)
    holders: dict[tuple[int, ...], Holders] = {}
    grouped: dict[Holders, list[tuple[str, TensorSpec]]] = {}
    for fqn, (spec, having) in seen.items():
        key = tuple(having)
        if key not in holders:
            holders[key] = tuple(sorted(rank for t in key for rank in members[t]))
        grouped.setdefault(holders[key], []).append((fqn, spec))
    return grouped


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
            raise _tied_differently(alias, rank)
    return found


def _mismatch(fqn: str, rank: int, spec: TensorSpec, other: int, other_spec: TensorSpec) -> ReplicaMismatchError:
    one, two = (f"{s.kind} {s.dtype} {list(s.shape)}" for s in (spec, other_spec))
    return ReplicaMismatchError(
        f"{fqn!r} is {one} on rank {rank} and {two} on rank {other}",
        hint="give tensors that differ by rank names of their own, or mark them with holdfast.per_rank(...)",
    )


def _tied_differently(alias: str, rank: int) -> ReplicaMismatchError:
    return ReplicaMismatchError(
        f"{alias!r} shares memory with another tensor on some ranks but not in the same way on rank {rank}",
        hint="tie the same parameters on every rank",
    )


# Cutting -------------------------------------------------------------------------------------------------------------
def _cut(line: Sequence[tuple[str, TensorSpec]], holders: Holders) -> Iterator[tuple[int, Piece]]:
    """Lay the tensors end to end and cut the line into equal parts, each border moved to the nearest row border."""
    n = len(holders)
    total = sum(spec.nbytes for _, spec in line)
    at = 0
    part = 0
    for fqn, spec in line:
        size = spec.nbytes
        step = _row_bytes(spec) or 1
        done = 0
        while done < size:
            while part < n - 1 and _nearest(total * (part + 1) // n - at, step, size) <= done:
                part += 1
            stop = size if part == n - 1 else _nearest(total * (part + 1) // n - at, step, size)
            yield holders[part], _rows(fqn, spec, done, stop)
            done = stop
        if size == 0:
            yield holders[part], _whole(fqn, spec)
        at += size


def _row_bytes(spec: TensorSpec) -> int:
    """Bytes between two places where the tensor may be cut: its size where it may not."""
    if spec.nbytes < WHOLE_BELOW_BYTES or not spec.shape:
        return spec.nbytes
    return spec.nbytes // spec.shape[0]


def _nearest(border: int, step: int, size: int) -> int:
    """The multiple of `step` within [0, size] nearest to `border`."""
    return max(0, min(size, (2 * border + step) // (2 * step) * step))


def _rows(fqn: str, spec: TensorSpec, start: int, stop: int) -> Piece:
    """The rows that the bytes [start, stop) are."""
    if stop - start == spec.nbytes:
        return _whole(fqn, spec)
    row = spec.nbytes // spec.shape[0]
    offsets = (start // row, *(0 for _ in spec.shape[1:]))
    lengths = ((stop - start) // row, *spec.shape[1:])
    return Piece(fqn, offsets, lengths, spec.shape, spec.dtype, spec.itemsize, form=spec.form)
