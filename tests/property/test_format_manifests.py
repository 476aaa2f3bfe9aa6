"""Any tensors cut in any way over any ranks make one manifest, whose bytes say so and nothing else."""

import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import CorruptError, FormatVersionError
from holdfast.format import image, manifest
from holdfast.model.image import ImageRecord, Piece


@st.composite
def tensors(draw, fqn):
    """Pieces that cover a tensor completely, none twice: a grid with borders anywhere."""
    shape = tuple(draw(st.lists(st.integers(0, 6), max_size=3)))
    cells: list[tuple[tuple[int, ...], tuple[int, ...]]] = [((), ())]
    for n in shape:
        borders = sorted({0, n, *draw(st.lists(st.integers(0, n), max_size=2))})
        spans = [(a, b - a) for a, b in pairwise(borders)] or [(0, 0)]
        cells = [((*o, begin), (*ln, length)) for o, ln in cells for begin, length in spans]
    return [Piece(fqn, offsets, lengths, shape, "float32", 4) for offsets, lengths in cells]


@st.composite
def checkpoints(draw):
    """Headers and records of a whole checkpoint."""
    world_size, counts = draw(st.integers(1, 4)), []
    counts = [draw(st.integers(1, 2)) for _ in range(world_size)]
    held: dict = {(rank, number): [] for rank in range(world_size) for number in range(counts[rank])}
    for n in range(draw(st.integers(0, 5))):
        for piece in draw(tensors(f"t{n}")):
            for holder in draw(st.sets(st.sampled_from(sorted(held)), min_size=1, max_size=2)):
                held[holder].append(piece)
    headers = [
        header(pieces, rank=rank, world_size=world_size, image=number, image_count=counts[rank])
        for (rank, number), pieces in held.items()
    ]
    return headers, [ImageRecord(h.id, h.size_bytes, draw(st.integers(0, 2**64 - 1))) for h in headers]


def header(pieces, **identity):
    template = image.lay_out(pieces, run="r", **identity)
    stamped = bytearray(template.header)
    replace(template, pads=()).stamp(stamped, 3, 14)
    return image.parse_header(stamped, template.layout.size_bytes)


@given(checkpoints(), st.binary(max_size=20) | st.none(), st.randoms())
def test_a_checkpoint_has_one_manifest(checkpoint, plain, rng: random.Random):
    headers, records = checkpoint
    built = manifest.build(headers, records, plain)
    data = manifest.encode(built)
    assert manifest.decode(data) == built
    rng.shuffle(headers)
    rng.shuffle(records)
    assert manifest.encode(manifest.build(headers, records, plain)) == data


@given(checkpoints(), st.data())
def test_without_one_piece_it_is_none(checkpoint, data):
    headers, records = checkpoint
    pieces = [e.piece for h in headers for e in h.layout.entries if e.piece.nbytes]
    if not pieces:
        return
    lost = data.draw(st.sampled_from(pieces))
    without = [
        replace(h, layout=replace(h.layout, entries=tuple(e for e in h.layout.entries if e.piece != lost)))
        for h in headers
    ]
    others = any(e.piece.fqn == lost.fqn for h in without for e in h.layout.entries)
    if others:
        with pytest.raises(CorruptError, match="no image holds element"):
            manifest.build(without, records, None)


@given(checkpoints(), st.data())
def test_bytes_written_over_or_cut_are_refused(checkpoint, data):
    headers, records = checkpoint
    good = manifest.encode(manifest.build(headers, records, b"{}"))
    begin = data.draw(st.integers(0, len(good) - 1))
    junk = data.draw(st.binary(max_size=8))
    for bad in (good[:begin] + junk + good[begin + len(junk) :], good[:begin], good + junk + b"\n"):
        if bad != good:
            with pytest.raises((CorruptError, FormatVersionError)):
                manifest.decode(bad)
