"""One tensor of a checkpoint for a person: where its pieces stand, what its numbers are like."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.cli.output import Column, Grid, progress, write, write_grid
from holdfast.errors import NotFoundError
from holdfast.format import names
from holdfast.format.numbers import has_numbers
from holdfast.model.identity import ImageId
from holdfast.model.manifest import Manifest, TensorRecord
from holdfast.units import format_bytes

if TYPE_CHECKING:
    from holdfast.store.moments import Histogram, Moments
    from holdfast.store.tensors import StoredTensor
    from holdfast.tiers.contract import Tier

_BINS = 16
_BAR_WIDTH = 40
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def records_of(manifest: Manifest, fqn: str) -> list[TensorRecord]:
    """The tensor of that name; of a rank's own value one per rank. Raises: NotFoundError naming what is near."""
    found = [t for t in manifest.tensors if t.fqn == fqn]
    if not found:
        near = difflib.get_close_matches(fqn, [t.fqn for t in manifest.tensors])
        hint = f"near to it: {', '.join(near)}" if near else "`holdfast show URL` lists all names"
        raise NotFoundError(f"no tensor is called {fqn!r}", hint=hint, step=manifest.id.step)
    return found


def note_of(tensor: TensorRecord) -> str:
    """Whose it is, or what it is tied to; mostly nothing."""
    owner = f"of rank {tensor.owner_rank}" if tensor.owner_rank is not None else ""
    return f"same as {tensor.alias_of}" if tensor.alias_of else owner


def shape_text(shape: Sequence[int]) -> str:
    """`"16x8"`; of a tensor without dimensions `"scalar"`."""
    return "x".join(map(str, shape)) or "scalar"


@dataclass(frozen=True, slots=True)
class Stands:
    """Where a chunk stands: which image, which part of the tensor, which bytes by the image's own header."""

    image: ImageId
    offsets: tuple[int, ...]
    lengths: tuple[int, ...]
    start: int
    size_bytes: int


class Looked:
    """A tensor read whole: once, or twice where it is larger than what is kept of it, for the histogram."""

    def __init__(self, tier: Tier, manifest: Manifest, record: TensorRecord, *, quiet: bool) -> None:
        """Raises: CorruptError, NotFoundError, TierError."""
        from holdfast.store.tensors import KEPT_BYTES, Images, stored_tensor

        images = Images(tier)
        self.stored = stored_tensor(images, manifest, record)
        self.dtype = self.stored.record.dtype
        self.moments: Moments | None = None
        self.histogram: Histogram | None = None
        self.stands = [_stands(self.stored, n) for n in range(len(self.stored.record.chunks))]
        self.size_bytes = sum(s.size_bytes for s in self.stands)
        with progress("reading", self.size_bytes * (1 + (self.size_bytes > KEPT_BYTES)), quiet=quiet) as bar:
            images.progress = bar.advance
            self._read()

    def _read(self) -> None:
        from holdfast.store.moments import Histogram, Moments

        if not has_numbers(self.dtype):
            for _ in self.stored.parts():  # proven, though not understood
                pass
            return
        self.moments = Moments()
        _gather(self.stored, self.moments)
        if self.moments.finite:
            self.histogram = Histogram(self.moments.least, self.moments.greatest, _BINS)
            _gather(self.stored, self.histogram)

    def document(self) -> dict[str, object] | None:
        """For `--json`; None where the elements are no numbers for us."""
        if self.moments is None:
            return None
        m = self.moments
        known = m.finite > 0
        return {
            "count": m.count,
            "nan": m.nan,
            "inf": m.inf,
            "zero": m.zero,
            "min": m.least if known else None,
            "max": m.greatest if known else None,
            "mean": m.mean if known else None,
            "std": m.deviation if known else None,
            "l2": m.l2 if known else None,
            "histogram": self._bins(),
        }

    def _bins(self) -> dict[str, object] | None:
        if self.histogram is None:
            return None
        return {"edges": self.histogram.edges(), "counts": [int(n) for n in self.histogram.counts]}

    def show(self) -> None:
        """On stdout."""
        if self.moments is None:
            write(f"\nits elements ({self.dtype}) are no numbers this Holdfast can read; every byte is as it was saved")
            return
        m = self.moments
        parts = [f"{n:,} {what}" for n, what in ((m.zero, "zero"), (m.nan, "nan"), (m.inf, "inf")) if n]
        write(f"\n{m.count:,} elements" + (f", of them {', '.join(parts)}" if parts else "; none is zero, nan or inf"))
        if m.finite:
            of = "of absolute values: " if "complex" in self.dtype else ""
            write(
                f"{of}min {m.least:.6g}   max {m.greatest:.6g}   mean {m.mean:.6g}   std {m.deviation:.6g}   "
                f"L2 {m.l2:.6g}\n"
            )
        if self.histogram is not None:
            for line in histogram_lines(self.histogram):
                write(line)


def _gather(stored: StoredTensor, into: Moments | Histogram) -> None:
    from holdfast.format.numbers import numbers

    for part in stored.parts():
        into.add(numbers(part, stored.record.dtype))


def histogram_lines(histogram: Histogram) -> Iterator[str]:
    """One line per part: where it begins, a bar, how many lie in it."""
    edges, counts = histogram.edges(), [int(n) for n in histogram.counts]
    if edges[0] == edges[-1]:
        yield f"all of them {edges[0]:.6g}"
        return
    nothing = (edges[-1] - edges[0]) * 1e-6  # what rounding leaves of a zero
    labels = [f"{0 if abs(edge) < nothing else edge:.4g}" for edge in edges[:-1]]
    wide, most = max(map(len, labels)), max(counts)
    for label, n in zip(labels, counts, strict=True):
        yield f"{label.rjust(wide)}  {_bar(n / most).ljust(_BAR_WIDTH)} {n:,}".rstrip()


def _bar(share: float) -> str:
    if "utf" not in (sys.stdout.encoding or "").lower():
        return "#" * max(round(share * _BAR_WIDTH), share > 0)
    eighths = max(round(share * _BAR_WIDTH * 8), share > 0)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def write_pieces(looked: Looked, manifest: Manifest) -> None:
    """Which image holds which part, and at which bytes."""
    columns = Column("RANK", True), Column("IMAGE", True), Column("OFFSETS"), Column("LENGTHS"), Column("AT BYTE", True)
    grid = Grid([*columns, Column("SIZE", True), Column("FROM")])
    for piece in looked.stands:
        image = piece.image
        older = "" if image.checkpoint == manifest.id else str(image.checkpoint)
        where = str(list(piece.offsets)), str(list(piece.lengths)), f"{piece.start:,}"
        grid.add(str(image.rank), str(image.image), *where, format_bytes(piece.size_bytes), older)
    if grid.rows:
        write_grid(grid)


def piece_documents(looked: Looked) -> list[dict[str, object]]:
    """The same for `--json`."""
    return [
        {
            "image": names.image_key(s.image),
            "offsets": s.offsets,
            "lengths": s.lengths,
            "start": s.start,
            "size_bytes": s.size_bytes,
        }
        for s in looked.stands
    ]


def _stands(stored: StoredTensor, index: int) -> Stands:
    chunk, entry = stored.record.chunks[index], stored.entry_of(index)
    return Stands(stored.image_of(index).id, chunk.offsets, chunk.lengths, entry.start, entry.piece.nbytes)
