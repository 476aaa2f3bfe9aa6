"""What `holdfast diff` finds, for a person and for a program."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from holdfast.cli.output import Column, Grid, counted, note, progress, write, write_grid
from holdfast.cli.plain import read_plain, shown
from holdfast.cli.runs import Run, name_of
from holdfast.cli.tensor import note_of, shape_text
from holdfast.errors import HoldfastError
from holdfast.format.plain import decode, encode
from holdfast.model.manifest import Manifest, TensorRecord
from holdfast.store.verify import DAMAGE

if TYPE_CHECKING:
    from holdfast.store.diff import Differences, Side, TensorChange

Checkpoint = tuple[Run, Manifest]
_MOST_TEXT = 60


@dataclass(frozen=True, slots=True)
class PlainChange:
    """A plain value that differs; None stands for "not there", and `rank` is whose it is."""

    path: str
    rank: int
    first: str | None
    second: str | None


@dataclass(slots=True)
class Report:
    """Filled by `compare`."""

    first: Checkpoint
    second: Checkpoint
    plain: list[PlainChange] = field(default_factory=list)
    unread: list[HoldfastError] = field(default_factory=list)
    """Why plain values of some rank could not be read."""
    differences: Differences | None = None
    changes: list[TensorChange] = field(default_factory=list)
    structure_only: bool = False
    named: bool = False
    """Whether anything at all has a name that is wanted."""

    @property
    def damage(self) -> HoldfastError | None:
        """The first damage that was met."""
        return next((e for e in (*self.unread, *(c.error for c in self.changes)) if e is not None), None)

    def sorted(self) -> list[TensorChange]:
        """Damaged ones first, then by relative change, the largest first."""
        return sorted(self.changes, key=lambda c: (c.error is None, *_weight(c), c.first.fqn))

    def document(self) -> dict[str, object]:
        assert self.differences is not None
        d = self.differences
        return {
            "first": _checkpoint(self.first),
            "second": _checkpoint(self.second),
            "same_structure": not d.any,
            "only_first": [_tensor(t) for t in d.only_first],
            "only_second": [_tensor(t) for t in d.only_second],
            "shapes": [{**_names(a), "first": a.shape, "second": b.shape} for a, b in d.shapes],
            "dtypes": [{**_names(a), "first": a.dtype, "second": b.dtype} for a, b in d.dtypes],
            "ties": [{**_names(a), "first": a.alias_of, "second": b.alias_of} for a, b in d.ties],
            "plain": [{"path": p.path, "rank": p.rank, "first": p.first, "second": p.second} for p in self.plain],
            "unread": [e.to_dict() for e in self.unread],
            "tensors": None if self.structure_only else [_change(c) for c in self.sorted()],
        }

    def write(self, everything: bool) -> None:
        """On stdout; damage on stderr, too."""
        write(f"{_words(self.first)}  ->  {_words(self.second)}", style="bold")
        self._write_structure()
        self._write_plain()
        if not self.structure_only:
            self._write_tensors(everything)
        told = dict.fromkeys(str(e) for e in (*self.unread, *(c.error for c in self.sorted())) if e is not None)
        for text in told:
            note(text)

    def _write_structure(self) -> None:
        assert self.differences is not None
        grid = Grid([Column("STRUCTURE"), Column("TENSOR", fold=True), Column("FIRST"), Column("SECOND")])
        d = self.differences
        for what, tensors in (("only in first", d.only_first), ("only in second", d.only_second)):
            for t in tensors:
                cells = [f"{t.dtype} {shape_text(t.shape)}", ""]
                grid.add(what, _label(t), *(cells if tensors is d.only_first else reversed(cells)))
        for a, b in d.shapes:
            grid.add("other shape", _label(a), shape_text(a.shape), shape_text(b.shape))
        for a, b in d.dtypes:
            grid.add("other dtype", _label(a), a.dtype, b.dtype)
        for a, b in d.ties:
            grid.add("other tie", _label(a), a.alias_of or "its own", b.alias_of or "its own")
        if grid.rows:
            write()
            write_grid(grid)
        else:
            write(f"the same structure: {counted(len(self.first[1].tensors), 'tensor')}")

    def _write_plain(self) -> None:
        grid = Grid([Column("PLAIN VALUE", fold=True), Column("FIRST", fold=True), Column("SECOND", fold=True)])
        for p in self.plain:
            label = f"{p.path} (rank {p.rank})" if p.rank else p.path
            grid.add(label, *("not there" if v is None else _short(v) for v in (p.first, p.second)))
        if grid.rows:
            write()
            write_grid(grid)

    def _write_tensors(self, everything: bool) -> None:
        columns = Column("TENSOR", fold=True), Column("DTYPE"), Column("CHANGED", True), Column("RELATIVE", True)
        grid = Grid([*columns, Column("NORM", True), Column("LARGEST", True), Column("NOTE", fold=True)])
        still = 0
        for c in self.sorted():
            if c.change.changed or c.error is not None or everything:
                grid.add(*_cells(c), style="red" if c.error is not None else "")
            else:
                still += 1
        write()
        if grid.rows:
            write_grid(grid)
        if still:
            what = "tensor is" if still == 1 else "tensors are"
            write(f"{still} {what} the same, bit for bit" + ("" if everything else " (--all lists them)"), style="dim")


def compare(report: Report, wanted: Callable[[str], bool], *, structure_only: bool, quiet: bool) -> None:
    """Fill the report. Raises: TierError when a tier failed."""
    from holdfast.store.diff import Side, compare_structure, compare_tensors
    from holdfast.store.tensors import Images

    (first, a), (second, b) = report.first, report.second
    images = Images(first.home)
    sides = Side(a, images), Side(b, images if second is first else Images(second.home))
    report.structure_only = structure_only
    report.differences = compare_structure(*sides, wanted=wanted)
    report.named = any(wanted(t.fqn) for t in (*a.tensors, *b.tensors))
    for rank in range(1 if structure_only else min(a.world_size, b.world_size)):
        _compare_plain(report, sides, rank, wanted)
    if structure_only:
        return
    with progress("comparing", _bytes_to_read(report), quiet=quiet) as bar:
        for side in sides:
            side.images.progress = bar.advance
        report.changes += compare_tensors(*sides, report.differences)


def _bytes_to_read(report: Report) -> int:
    """Images that hold something of what is compared, wholly: what is compared of them is most of it."""
    assert report.differences is not None
    total = 0
    for n, (_, manifest) in enumerate((report.first, report.second)):
        named = {chunk.image for pair in report.differences.common for chunk in pair[n].chunks}
        total += sum(manifest.images[i].size_bytes for i in named)
    return total


def _compare_plain(report: Report, sides: tuple[Side, Side], rank: int, wanted: Callable[[str], bool]) -> None:
    """Rank 0's values, and what is each rank's own."""
    try:
        a, b = (decode(read_plain(s.images, s.manifest, rank), keep_unknown=True) for s in sides)
    except DAMAGE as e:
        report.unread.append(e)
        return
    report.named = report.named or any(wanted(path) for value in (a, b) for path in _paths("", value))
    for path, x, y in _walk("", a, b):
        if wanted(path):
            report.plain.append(PlainChange(path, rank, *(None if v is _NOTHING else shown(v) for v in (x, y))))


_NOTHING = object()


def _walk(path: str, a: Any, b: Any) -> Iterator[tuple[str, Any, Any]]:
    """Where two values differ, as deep as both are containers of the same kind."""
    if type(a) is type(b) and isinstance(a, dict):
        for key in (*a, *(k for k in b if k not in a)):
            yield from _walk(_below(path, key), a.get(key, _NOTHING), b.get(key, _NOTHING))
    elif type(a) is type(b) and type(a) in (list, tuple) and len(a) == len(b):
        for n, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from _walk(f"{path}[{n}]", x, y)
    elif a is _NOTHING or b is _NOTHING or encode(a) != encode(b):
        yield path, a, b


def _paths(path: str, value: Any) -> Iterator[str]:
    """Of a value and of all in it, as `_walk` names them."""
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _paths(_below(path, key), item)
    elif type(value) in (list, tuple):
        for n, item in enumerate(value):
            yield from _paths(f"{path}[{n}]", item)


def _below(path: str, key: object) -> str:
    if isinstance(key, str):
        return f"{path}.{key}" if path else key
    return f"{path}[{key!r}]"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MOST_TEXT else f"{line[: _MOST_TEXT - 3]}..."


def _weight(c: TensorChange) -> tuple[float, float, float]:
    share = c.change.changed / c.change.count if c.change.count else 0.0
    return -c.change.relative, -c.change.l2, -share


def _cells(c: TensorChange) -> list[str]:
    change = c.change
    dtype = c.first.dtype if c.first.dtype == c.second.dtype else f"{c.first.dtype} -> {c.second.dtype}"
    share = f"{change.changed:,} of {change.count:,}"
    measured = c.numeric and c.error is None
    numbers = [_number(change.relative), _number(change.l2), _number(change.max_abs)] if measured else ["", "", ""]
    return [_label(c.first), dtype, share if c.error is None else "", *numbers, "; ".join(_notes(c))]


def _notes(c: TensorChange) -> Iterator[str]:
    if c.error is not None:
        yield f"not compared: {c.error.message}"
    elif not c.numeric:
        yield "compared as bytes" if c.first.dtype == c.second.dtype else "not compared: no numbers for this Holdfast"
    if c.change.nonfinite:
        yield f"{c.change.nonfinite:,} are or were nan or inf"


def _number(value: float) -> str:
    return "from 0" if math.isinf(value) else f"{value:.3g}"


def _label(tensor: TensorRecord) -> str:
    owner = note_of(tensor) if tensor.owner_rank is not None else ""
    return f"{tensor.fqn} ({owner})" if owner else tensor.fqn


def _words(checkpoint: Checkpoint) -> str:
    return f"{checkpoint[1].run}, {checkpoint[1].id}"


def _checkpoint(checkpoint: Checkpoint) -> dict[str, object]:
    run, manifest = checkpoint
    return {"url": run.url, "run": manifest.run, **(name_of(manifest.id) or {}), "world_size": manifest.world_size}


def _names(tensor: TensorRecord) -> dict[str, object]:
    return {"name": tensor.fqn, "owner_rank": tensor.owner_rank}


def _tensor(tensor: TensorRecord) -> dict[str, object]:
    return {**_names(tensor), "shape": tensor.shape, "dtype": tensor.dtype}


def _change(c: TensorChange) -> dict[str, object]:
    change, whole = c.change, c.error is None
    measured = whole and c.numeric
    return {
        **_names(c.first),
        "count": change.count if whole else None,
        "changed": change.changed if whole else None,
        "nonfinite": change.nonfinite if measured else None,
        "l2": change.l2 if measured else None,
        "relative": change.relative if measured else None,
        "max_abs": change.max_abs if measured else None,
        "first_l2": change.first_l2 if measured else None,
        "error": c.error.to_dict() if c.error is not None else None,
    }
