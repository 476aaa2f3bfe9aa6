"""Any pieces whatever make an image that reads back, that safetensors opens, and of which every bit matters."""

import contextlib

import safetensors
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import CorruptError, FormatVersionError
from holdfast.format import image
from holdfast.format.checksum import crc64nvme
from holdfast.format.dtypes import SAFETENSORS
from holdfast.model.identity import ImageId
from holdfast.model.image import Piece

DTYPES = [(name, size) for name, (_, size) in SAFETENSORS.items()] + [("complex128", 16), ("float4_e2m1fn_x2", 1)]
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda n: not n.startswith("__") and "[" not in n
)
NUMBERS = st.integers(0, 10**8 - 1)


@st.composite
def piece(draw, fqn):
    shape = tuple(draw(st.lists(st.integers(0, 6), max_size=4)))
    offsets = tuple(draw(st.integers(0, n)) for n in shape) if draw(st.booleans()) else (0,) * len(shape)
    lengths = tuple(draw(st.integers(0, n - o)) for n, o in zip(shape, offsets, strict=True)) if any(offsets) else shape
    dtype, itemsize = draw(st.sampled_from(DTYPES))
    form = draw(st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
    return Piece(fqn, offsets, lengths, shape, dtype, itemsize, draw(st.none() | st.integers(0, 7)), form)


@st.composite
def images(draw):
    """(template, attempt, step)"""
    names = draw(st.lists(NAMES, unique=True, max_size=8))
    cut = draw(st.integers(0, len(names)))
    pieces = [draw(piece(name)) for name in names[:cut]]
    image_count = draw(st.integers(1, 3))
    template = image.lay_out(
        pieces,
        [(name, "target[") for name in names[cut:]],
        run=draw(NAMES),
        rank=draw(st.integers(0, 7)),
        world_size=8,
        image=draw(st.integers(0, image_count - 1)),
        image_count=image_count,
        structure=draw(st.text("0123456789abcdef", max_size=64)),
        relies_on=draw(st.lists(st.builds(ImageId, NUMBERS, NUMBERS, st.integers(0, 7)), unique=True, max_size=2)),
        plain_bytes=draw(st.integers(0, 10_000)),
    )
    return template, draw(NUMBERS), draw(NUMBERS)


def made(template, attempt, step, seed=0):
    buffer = bytearray(b"\xaa" * template.layout.size_bytes)
    template.stamp(buffer, attempt, step)
    for n, entry in enumerate(template.layout.entries):
        buffer[entry.start : entry.stop] = bytes([(n + seed) % 256]) * (entry.stop - entry.start)
    image.write_plain(buffer, template.layout, b"{}")
    return buffer, image.seal(buffer, template.layout)


@given(images())
def test_what_is_laid_out_reads_back(what):
    template, attempt, step = what
    buffer, crc = made(*what)
    header = image.parse_header(buffer, len(buffer))
    assert header.layout == template.layout
    assert header.id.checkpoint.attempt == attempt
    assert header.id.checkpoint.step == step
    assert image.check(buffer, header.layout) == crc == crc64nvme(buffer)
    assert image.read_plain(buffer, header.layout) == b"{}"


@given(images())
def test_safetensors_finds_every_entry_where_we_do(what):
    buffer, _ = made(*what)
    found = dict(safetensors.deserialize(bytes(buffer)))
    for entry in what[0].layout.entries:
        assert bytes(found[entry.name]["data"]) == buffer[entry.start : entry.stop]


@given(images(), st.data())
def test_no_flipped_bit_goes_unnoticed(what, data):
    buffer, _ = made(*what)
    for bit in data.draw(st.lists(st.integers(0, len(buffer) * 8 - 1), min_size=5, max_size=20)):
        buffer[bit // 8] ^= 1 << bit % 8
        assert not is_good(buffer, len(buffer))
        buffer[bit // 8] ^= 1 << bit % 8
    assert is_good(buffer, len(buffer))


@given(images(), st.data())
def test_no_shorter_image_passes(what, data):
    buffer, _ = made(*what)
    size = data.draw(st.integers(0, len(buffer) - 1))
    assert not is_good(buffer[:size], size)
    assert not is_good(buffer[:size], len(buffer))


@given(images(), st.binary(min_size=1, max_size=40), st.data())
def test_header_bytes_written_over_raise_nothing_else(what, junk, data):
    template, attempt, step = what
    header = bytearray(template.header)
    template = image.Template(template.layout, template.header, ())
    template.stamp(header, attempt, step)
    begin = data.draw(st.integers(0, len(header) - 1))
    header[begin : begin + len(junk)] = junk[: len(header) - begin]
    with contextlib.suppress(CorruptError, FormatVersionError):
        image.parse_header(header, template.layout.size_bytes)


@given(st.binary(max_size=300), st.integers(-1, 2**70))
def test_any_bytes_raise_nothing_else(junk, size):
    with contextlib.suppress(CorruptError, FormatVersionError):
        image.parse_header(junk, size)


def is_good(buffer, size):
    try:
        image.check(buffer, image.parse_header(buffer, size).layout)
    except (CorruptError, FormatVersionError):
        return False
    return True
