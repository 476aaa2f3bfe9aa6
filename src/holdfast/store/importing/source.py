"""A source: everything of a foreign checkpoint that is to be known, and checked, before a byte is written."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from holdfast.errors import CorruptError, HoldfastError, UnsupportedValueError, UsageError
from holdfast.format import plain
from holdfast.format.limits import MAX_BYTES, check_piece
from holdfast.format.manifest.coverage import Work, first_hole, first_overlap
from holdfast.format.nested import DCP_MARK, Mark, is_reserved, mark_for, refs_in, without_tensors
from holdfast.format.plain.values import is_text
from holdfast.model.image import Piece

GATHERED_BYTES = 2**30
"""What is no run of bytes is gathered in memory: so much at most."""
_SHOWN = 20
_TIMES = 4
_ANYWAY_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Summed:
    """Bytes of a file whose CRC-32 is known: a record of a zip."""

    file: Path
    start: int
    size_bytes: int
    crc32: int


@dataclass(frozen=True, slots=True)
class Stored:
    """One rectangle of a tensor, and where its bytes lie: from `start` of a file on, its first element first.

    `strides` count elements; None: it is a run of bytes. `summed` has all of it.
    """

    piece: Piece
    file: Path
    start: int
    strides: tuple[int, ...] | None = None
    summed: Summed | None = None

    @property
    def span_bytes(self) -> int:
        """From its first byte to its last."""
        if self.strides is None or not self.piece.nbytes:
            return self.piece.nbytes
        last = sum((n - 1) * step for n, step in zip(self.piece.lengths, self.strides, strict=True))
        return (last + 1) * self.piece.itemsize


@dataclass(frozen=True, slots=True)
class Source:
    """What an import copies: tensors in the order of their bytes, aliases, plain values.

    `plain` are the values of `tree` as an image has them; `left_out` are the names that were asked to be left out.
    """

    kind: str
    path: Path
    stored: tuple[Stored, ...]
    aliases: tuple[tuple[str, str], ...]
    tree: dict[str, Any]
    plain: bytes
    left_out: tuple[str, ...] = ()

    @property
    def n_tensors(self) -> int:
        return len({s.piece.fqn for s in self.stored}) + len(self.aliases)

    @property
    def size_bytes(self) -> int:
        return sum(s.piece.nbytes for s in self.stored) + len(self.plain)


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of a source: to stand below a key that it lacks, and to be without some names."""

    under: str | None = None
    without: tuple[str, ...] = ()


class Gathering:
    """What was found of a source so far, under the names it will have.

    Names are those of the source; `full` makes them what the checkpoint calls them.
    """

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._prefix = ""
        self._used: set[str] = set()
        self._left_out: dict[str, None] = {}
        self._problems: dict[str, str] = {}
        self._stored: list[Stored] = []
        self._aliases: dict[str, str] = {}
        self._places: dict[tuple[Any, ...], str] = {}

    def begin(self, keys: Collection[Any]) -> None:
        """The source has these at its top: they stand below the key that was asked for, unless that is among them."""
        under = self._asked.under
        if under is not None and under not in keys:
            self._prefix = f"{under}."

    @property
    def under(self) -> str | None:
        """The key below which everything stands; None: nothing was moved."""
        return self._prefix[:-1] or None

    def full(self, name: str) -> str:
        """The name in the checkpoint."""
        return self._prefix + name

    def takes(self, name: str) -> bool:
        """Whether what has that name is taken; what is not, is told of."""
        for without in self._asked.without:
            if name == without or name.startswith(f"{without}."):
                self._used.add(without)
                self._left_out[name] = None
                return False
        return True

    def leave_out(self, name: str) -> None:
        """Something that is not taken, and is no value of the state."""
        self._left_out[name] = None

    def problem(self, name: str, what: str) -> None:
        """Something that cannot be taken: told together with all others."""
        self._problems.setdefault(name, what)

    def add(self, name: str, stored: Stored) -> None:
        """A rectangle of the tensor of that name."""
        if stored.strides is not None and max(stored.span_bytes, stored.piece.nbytes) > GATHERED_BYTES:
            self.problem(name, f"its elements do not lie in a row, and are more than {GATHERED_BYTES} bytes")
        else:
            self._stored.append(stored)

    def add_once(self, name: str, stored: Stored) -> None:
        """A whole tensor; one whose bytes another one has exactly is tied to that."""
        piece = stored.piece
        place = (stored.file, stored.start, stored.strides, piece.shape, piece.dtype)
        first = self._places.setdefault(place, piece.fqn) if piece.nbytes else piece.fqn
        if first == piece.fqn:
            self.add(name, stored)
        else:
            self._aliases[piece.fqn] = first

    def finish(
        self, kind: str, path: Path, values: dict[str, Any], *, files_bytes: int, mark: Mark | None = None
    ) -> Source:
        """The source, checked.

        Args:
            values: the tree, with a `TensorRef` wherever a tensor stands; those whose place follows are taken out.
            mark: says how names nest; None: that is found out.

        Raises: UsageError, UnsupportedValueError; CorruptError when it is not whole.
        """
        self._complain()
        stored = _without_empty(self._stored)
        _check(stored, self._aliases, files_bytes)
        there = {s.piece.fqn for s in stored} | self._aliases.keys()
        missing = next((fqn for fqn in refs_in(values) if fqn not in there), None)
        if missing is not None:
            raise CorruptError(f"no part of {missing[:200]!r} is there")
        tree, payload = self._tree(values, mark)
        if not stored and not values:
            raise UsageError(f"{path} has nothing in it", hint="name a checkpoint")
        return Source(
            kind=kind,
            path=path,
            stored=tuple(sorted(stored, key=lambda s: (s.file, s.start))),
            aliases=tuple(self._aliases.items()),
            tree=tree,
            plain=payload,
            left_out=tuple(self._left_out),
        )

    def _complain(self) -> None:
        unused = [name for name in self._asked.without if name not in self._used]
        if unused:
            raise UsageError(
                f"the source has nothing called {', '.join(map(repr, unused))}",
                hint="--without takes full names, or what they begin with up to a dot, as the source has them",
            )
        if self._problems:
            shown = [f"{name} ({what})" for name, what in self._problems.items()]
            more = f", and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
            raise UnsupportedValueError(
                f"{len(shown)} cannot be taken: {', '.join(shown[:_SHOWN])}{more}",
                hint="leave them out with --without NAME, or save them anew as tensors and plain values",
            )

    def _tree(self, values: dict[str, Any], mark: Mark | None) -> tuple[dict[str, Any], bytes]:
        if self.under is not None and (mark is None or mark.nested):
            values = {self.under: values}
            mark = None
        found = mark_for(values) if mark is None else mark
        odd = next((key for key in values if type(key) is not str or is_reserved(key)), None)
        if odd is not None:
            raise UnsupportedValueError(
                f"{odd!r:.80} can be no key of a state", hint="put everything below one with --under KEY"
            )
        tree = without_tensors(values, found)
        tree[DCP_MARK] = found.to_plain()
        return tree, plain.encode(tree, root="the source")


def piece_of(fqn: str, shape: tuple[int, ...], dtype: str, itemsize: int) -> Piece:
    """A tensor that is there as a whole."""
    return Piece(fqn, (0,) * len(shape), shape, shape, dtype, itemsize)


def is_run(lengths: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether elements with these strides lie one after the other, in row order."""
    if 0 in lengths:
        return True
    expected = 1
    for n, step in zip(reversed(lengths), reversed(strides), strict=True):
        if n != 1 and step != expected:
            return False
        expected *= n
    return True


def _without_empty(stored: Iterable[Stored]) -> list[Stored]:
    """Rectangles without elements go where their tensor has some; of a tensor without any, one stays."""
    found: list[Stored] = []
    seen: set[str] = set()
    for one in stored:
        piece = one.piece
        if 0 in piece.lengths:
            if 0 not in piece.shape or piece.fqn in seen:
                continue
            whole = piece_of(piece.fqn, piece.shape, piece.dtype, piece.itemsize)
            found.append(replace(one, piece=whole, strides=None, summed=None))
        else:
            found.append(one)
        seen.add(piece.fqn)
    return found


@dataclass(slots=True)
class _Parts:
    shape: tuple[int, ...]
    dtype: str
    rects: list[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)


def _check(stored: Sequence[Stored], aliases: dict[str, str], files_bytes: int) -> None:
    """Refuse what no image can hold, holes, overlaps, and a few bytes that stand for very many.

    Raises: UsageError, CorruptError.
    """
    tensors: dict[str, _Parts] = {}
    for one in stored:
        piece = one.piece
        check_piece(piece, 1)
        parts = tensors.setdefault(piece.fqn, _Parts(piece.shape, piece.dtype))
        if (parts.shape, parts.dtype) != (piece.shape, piece.dtype):
            raise CorruptError(f"parts of {piece.fqn!r} are of different tensors: {parts.dtype} {parts.shape}")
        parts.rects.append((piece.offsets, piece.lengths))
    total = sum(s.piece.nbytes for s in stored)
    if total > min(MAX_BYTES, _TIMES * files_bytes + _ANYWAY_BYTES):
        raise CorruptError(f"tensors of {total} bytes do not come out of {files_bytes} bytes of files")
    odd = next((name for name in (*tensors, *aliases) if not is_text(name)), None)
    if odd is not None:
        raise UnsupportedValueError(f"{odd[:80]!r} is no valid text, so no tensor can have that name")
    for alias in aliases:
        if alias in tensors:
            raise CorruptError(f"two things are called {alias[:200]!r}")
        check_piece(piece_of(alias, (), "uint8", 1), 1)
    work = Work(len(stored))
    for fqn, parts in tensors.items():
        hole = first_hole(parts.rects, parts.shape, work)
        if hole is not None:
            raise CorruptError(f"element {hole} of {fqn!r}, whose shape is {parts.shape}, is nowhere")
        if len(parts.rects) > 1 and first_overlap(parts.rects, work) is not None:
            raise CorruptError(f"two parts of {fqn!r} overlap")


def located(path: Path, error: HoldfastError) -> HoldfastError:
    """The error, saying in which file it was met."""
    if str(path) not in error.message:
        error.message = f"{path}: {error.message}"
    return error
