"""Which tensors of a rank stand in the image that its steps share: those that nothing is expected to change.

No optimizer owns them. Whether they changed all the same is found by comparing bytes at every save (unchanged.py); what
changes again and again moves to the image of each step, for the rest of the attempt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from holdfast.model.image import Piece
from holdfast.trainer.structure import Structure

MIN_SHARED_BYTES = 1 << 20
"""Less is not worth an image of its own."""
_CHANGES = {"parameter": 2, "buffer": 1}
"""So many changes move a tensor: buffers that change once mostly are statistics, which change at every step."""

Aliases = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Groups:
    """The pieces of a rank, apart: those of every step, and those that steps share (perhaps none)."""

    pieces: tuple[Piece, ...]
    aliases: Aliases
    shared: tuple[Piece, ...] = ()
    shared_aliases: Aliases = ()


class Grouping:
    """Learns which tensors change. Threads: the training thread."""

    def __init__(self) -> None:
        self._moved: frozenset[str] = frozenset()
        self._changes: Counter[str] = Counter()
        self._tries = 0

    def forget(self) -> None:
        """Another attempt: what changed before may be frozen now."""
        self._moved = frozenset()
        self._changes.clear()
        self._tries = 0

    def split(
        self, structure: Structure, owned: Collection[str] | None, pieces: tuple[Piece, ...], aliases: Aliases
    ) -> Groups:
        """Put each piece in its group. `owned`: names of what optimizers own; None: there is no optimizer to tell."""
        frozen = self._frozen(structure, owned) if owned is not None else frozenset()
        shared = tuple(p for p in pieces if p.owner_rank is None and p.fqn in frozen)
        if sum(p.nbytes for p in shared) < MIN_SHARED_BYTES:
            return Groups(pieces, aliases)
        names = {p.fqn for p in shared}
        return Groups(
            tuple(p for p in pieces if p.owner_rank is not None or p.fqn not in names),
            tuple(a for a in aliases if a[1] not in names),
            shared,
            tuple(a for a in aliases if a[1] in names),
        )

    def _frozen(self, structure: Structure, owned: Collection[str]) -> frozenset[str]:
        tied = {first for further, first in structure.aliases.items() if _is_owned(further, owned)}
        return frozenset(
            name
            for name, spec in structure.shared.items()
            if spec.kind in _CHANGES and name not in tied and name not in self._moved and not _is_owned(name, owned)
        )

    def note(self, structure: Structure, changed: Iterable[str]) -> frozenset[str]:
        """These changed since they were staged; those that are to move now."""
        self._changes.update(changed)
        known = structure.shared
        return frozenset(n for n, times in self._changes.items() if n in known and times >= _CHANGES[known[n].kind])

    def may_try(self) -> bool:
        """Whether to try a move: after one for which there was no room, less and less often."""
        self._tries += 1
        return self._tries & (self._tries - 1) == 0

    def move(self, names: frozenset[str]) -> frozenset[str]:
        """They belong to every step from now on; what had moved before, for `put_back`."""
        before, self._moved = self._moved, self._moved | names
        return before

    def put_back(self, before: frozenset[str]) -> None:
        """There was no room for it."""
        self._moved = before


def _is_owned(name: str, owned: Collection[str]) -> bool:
    """Whether an optimizer owns the tensor, or the parameter of which it is a part."""
    while name:
        if name in owned:
            return True
        name = name.rpartition(".")[0]
    return False
