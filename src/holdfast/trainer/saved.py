"""What the images of a checkpoint hold, by name: the other side of `capture`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from holdfast.errors import CorruptError
from holdfast.format.image import read_plain
from holdfast.format.manifest.coverage import Work, first_hole
from holdfast.format.nested import is_reserved
from holdfast.model.image import Entry, ImageHeader, Piece
from holdfast.model.rect import Rect
from holdfast.trainer import values
from holdfast.trainer.forms import Form, parse

OWN_PATHS = "__holdfast__.per_rank"
"""Key of the tree under which the paths of `per_rank` marks stand."""


@dataclass(frozen=True, slots=True)
class Source:
    """An image, whole in a buffer that may be read-only, or with an empty one where it stands on a tier.

    `plain` are its plain values where there is no buffer that holds them.
    """

    header: ImageHeader
    buffer: memoryview
    plain: bytes | None = None

    def read_plain(self) -> bytes:
        """Its plain values. Raises: CorruptError."""
        return read_plain(self.buffer, self.header.layout) if self.plain is None else self.plain


@dataclass(slots=True)
class SavedTensor:
    """A tensor of the checkpoint: (source, entry) of every piece of it."""

    fqn: str
    shape: tuple[int, ...]
    dtype: str
    found: list[tuple[int, Entry]] = field(default_factory=list)
    form: str | None = None
    """As `Piece.form`."""

    def pieces(self) -> list[tuple[int, Entry]]:
        """Pieces that together are the whole, none of them twice.

        Raises: CorruptError: they are not the whole.
        """
        distinct = {e.piece.rect: (source, e) for source, e in reversed(self.found)}
        whole = distinct.get(Rect((0,) * len(self.shape), self.shape))
        if whole is not None:
            return [whole]
        hole = first_hole(distinct, self.shape, Work(len(distinct)))
        if hole is not None:
            raise CorruptError(f"no image holds element {list(hole)} of {self.fqn!r}")
        return list(distinct.values())

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


class Saved:
    """The tensors and plain values of a checkpoint.

    `shared` by name; `own[rank]` by name; `aliases` maps further names to first ones.

    Raises: CorruptError.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        newest = max((s.header.id.checkpoint for s in sources), default=None)
        self.world_size = next((s.header.world_size for s in sources if s.header.id.checkpoint == newest), 0)
        self.shared: dict[str, SavedTensor] = {}
        self.own: dict[int, dict[str, SavedTensor]] = {}
        self.aliases: dict[str, str] = {}
        for i, source in enumerate(sources):
            for entry in source.header.layout.entries:
                self._add(i, entry)
            self.aliases.update(source.header.layout.aliases)
        self._trees: dict[int, dict[str, Any]] = {}
        self._forms: dict[int | None, dict[str, Form]] = {}
        self._plain = plain_sources([s.header for s in sources])

    def _add(self, source: int, entry: Entry) -> None:
        piece = entry.piece
        part = self.shared if piece.owner_rank is None else self.own.setdefault(piece.owner_rank, {})
        tensor = part.setdefault(piece.fqn, SavedTensor(piece.fqn, piece.shape, piece.dtype, form=piece.form))
        if (tensor.shape, tensor.dtype, tensor.form) != (piece.shape, piece.dtype, piece.form):
            raise CorruptError(f"images disagree on {piece.fqn!r}: {tensor} and {_form(piece)}")
        tensor.found.append((source, entry))

    def find(self, name: str, rank: int | None) -> SavedTensor | None:
        """The shared tensor of that name, or that of `rank`'s own."""
        if rank is not None:
            return self.own.get(rank, {}).get(name)
        return self.shared.get(self.aliases.get(name, name))

    def forms(self, rank: int | None) -> dict[str, Form]:
        """What makes the tensors that are stored as several, by their name; aliases have it, too. Read once.

        Raises: CorruptError, StructureError.
        """
        if rank not in self._forms:
            part = self.shared if rank is None else self.own.get(rank, {})
            names = [*part, *(self.aliases if rank is None else ())]
            found = {
                name: tensor.form for name in names if (tensor := self.find(name, rank)) and tensor.form is not None
            }
            forms: dict[str, Form] = {}
            for name, text in found.items():
                form = parse(text)
                first = f".{next(form.leaves())}"
                if name.endswith(first) and name != first:
                    forms[name.removesuffix(first)] = form
                elif name in part:  # a plain tensor may share the memory of a part, and is an alias then
                    raise CorruptError(f"{name!r} is not named as the first part of its form")
            self._forms[rank] = forms
        return self._forms[rank]

    def tree(self, rank: int) -> Mapping[str, Any]:
        """The plain values in the image of a rank; those of rank 0 hold the shared ones. Read once.

        Raises: CorruptError.
        """
        if rank not in self._trees:
            if rank not in self._plain:
                raise CorruptError(f"no image of rank {rank} is there")
            source = self._sources[self._plain[rank]]
            self._trees[rank] = tree_of(source.read_plain())
        return self._trees[rank]

    def is_own(self, path: str) -> bool:
        """Whether the value of that path was saved per rank."""
        return path in self.tree(0).get(OWN_PATHS, [])

    def shared_paths(self) -> Iterator[str]:
        """Paths of all shared plain values. Reserved keys are nobody's."""
        own = set(self.tree(0).get(OWN_PATHS, []))
        for path in self.tree(0):
            if path not in own and not is_reserved(path) and not any(path.startswith(f"{o}.") for o in own):
                yield path


def tree_of(payload: bytes) -> dict[str, Any]:
    """The plain values of an image, by path. Raises: CorruptError."""
    tree = values.decode(payload)
    if not isinstance(tree, dict) or not isinstance(tree.get(OWN_PATHS, []), list):
        raise CorruptError("the plain values are no tree")
    return tree


def plain_sources(headers: Sequence[ImageHeader]) -> dict[int, int]:
    """Where each rank's plain values stand: in its first image of the newest step."""
    newest = max((h.id.checkpoint for h in headers), default=None)
    return {h.id.rank: i for i, h in enumerate(headers) if h.id.checkpoint == newest and h.id.image == 0}


def _form(piece: Piece) -> str:
    return f"{piece.dtype} {list(piece.shape)}"
