"""Images: their layout byte by byte, another reader's view of them, and sealing."""

import json

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from safetensors import safe_open

from holdfast.errors import CapacityError, CorruptError, UsageError
from holdfast.format import image, layout
from holdfast.format.blocks import BlockTable
from holdfast.format.checksum import BLOCK_BYTES, crc64nvme
from holdfast.format.dtypes import SAFETENSORS
from holdfast.model.identity import ImageId
from holdfast.model.image import Piece


def whole(fqn, shape=(3, 5), dtype="float32", itemsize=4, owner_rank=None):
    return Piece(fqn, (0,) * len(shape), shape, shape, dtype, itemsize, owner_rank)


PIECES = (
    whole("model.w"),
    Piece("model.big", (2, 0), (2, 7), (8, 7), "bfloat16", 2),
    whole("model.empty", (0, 4)),
    whole("model.scalar", ()),
    whole("model.c", (3,), "complex128", 16),
    Piece("model.c2", (1,), (2,), (3,), "complex128", 16),
    whole("rng", (5,), "uint8", 1, owner_rank=1),
)


def make(pieces=PIECES, aliases=(("model.tied", "model.w"),), plain=b'{"lr":0.1}', attempt=3, step=100, **more):
    template = image.lay_out(
        pieces, aliases, run="run7", rank=1, world_size=2, structure="ab12", plain_bytes=len(plain), **more
    )
    buffer = bytearray(b"\xee" * template.layout.size_bytes)
    template.stamp(buffer, attempt, step)
    rng = np.random.default_rng(0)
    for entry in template.layout.entries:
        buffer[entry.start : entry.stop] = rng.bytes(entry.stop - entry.start)
    image.write_plain(buffer, template.layout, plain)
    return buffer, template.layout, image.seal(buffer, template.layout)


def test_everything_stands_where_the_format_says():
    buffer, where, _ = make()
    assert int.from_bytes(buffer[:8], "little") == where.header_bytes - 8
    assert where.header_bytes % 4096 == where.table_start % 4096 == where.size_bytes % 4096 == 0
    assert [e.start % 64 for e in where.entries] == [0] * len(PIECES)
    assert where.plain_start % 64 == 0
    assert [e.piece for e in where.entries] == list(PIECES), "the order given is the order kept"
    assert where.plain_start >= where.entries[-1].stop
    assert where.table_start >= where.plain_start + where.plain_capacity_bytes
    assert where.size_bytes - where.table_start == 4096


def test_the_header_says_all_of_it():
    buffer, where, _ = make(relies_on=(ImageId(3, 90, 1, 1),), image_count=2)
    header = image.parse_header(buffer, len(buffer))
    assert header.layout == where
    assert header.id == ImageId(3, 100, 1, 0)
    assert (header.run, header.world_size, header.image_count) == ("run7", 2, 2)
    assert (header.structure, header.format_version) == ("ab12", 0)
    assert header.relies_on == (ImageId(3, 90, 1, 1),)
    assert header.size_bytes == len(buffer)


def test_a_header_is_read_by_ranges_too():
    buffer, where, _ = make()
    asked = []

    def read(offset, n_bytes):
        asked.append((offset, n_bytes))
        return memoryview(buffer)[offset : offset + n_bytes]

    assert image.parse_header(read, len(buffer)).layout == where
    assert asked == [(0, 8), (8, where.header_bytes - 8)]


def test_the_header_alone_suffices():
    buffer, where, _ = make()
    assert image.parse_header(buffer[: where.header_bytes], len(buffer)).layout == where


def test_safetensors_finds_the_same_bytes(tmp_path):
    buffer, where, _ = make()
    (tmp_path / "i.safetensors").write_bytes(buffer)
    with safe_open(tmp_path / "i.safetensors", "numpy") as opened:
        assert opened.metadata()["holdfast.step"] == "00000000000000000100"
        names = set(opened.keys())
    found = dict(safetensors.deserialize(bytes(buffer)))
    for entry in where.entries:
        tensor = found[entry.name]
        stored = SAFETENSORS.get(entry.piece.dtype)
        assert bytes(tensor["data"]) == buffer[entry.start : entry.stop]
        assert tensor["dtype"] == (stored[0] if stored else "U8")
        assert tuple(tensor["shape"]) == (entry.piece.lengths if stored else (entry.piece.nbytes,))
        assert entry.name in names
    assert bytes(found["__holdfast__.plain"]["data"])[8:18] == b'{"lr":0.1}'


def test_numpy_loads_what_was_put_in():
    values = np.arange(15, dtype=np.float32).reshape(3, 5)
    template = image.lay_out([whole("w")], run="r", rank=0, world_size=1)
    buffer = bytearray(template.layout.size_bytes)
    template.stamp(buffer, 1, 1)
    entry = template.layout.entries[0]
    buffer[entry.start : entry.stop] = values.tobytes()
    image.seal(buffer, template.layout)
    np.testing.assert_array_equal(safetensors.numpy.load(bytes(buffer))["w"], values)


@pytest.mark.parametrize(("ours", "theirs"), SAFETENSORS.items())
def test_every_dtype_we_name_is_known_to_safetensors(ours, theirs):
    template = image.lay_out([whole("w", (4,), ours, theirs[1])], run="r", rank=0, world_size=1)
    buffer = bytearray(template.layout.size_bytes)
    template.stamp(buffer, 1, 1)
    assert dict(safetensors.deserialize(bytes(buffer)))["w"]["dtype"] == theirs[0]


@pytest.mark.torch
def test_dtypes_are_torch_dtypes_of_those_sizes():
    import torch

    assert {n: getattr(torch, n).itemsize for n in SAFETENSORS} == {n: size for n, (_, size) in SAFETENSORS.items()}


def test_stamping_again_changes_nothing_but_the_numbers():
    template = image.lay_out(PIECES, run="r", rank=0, world_size=2)
    first, second = (bytearray(template.layout.size_bytes) for _ in range(2))
    template.stamp(first, 1, 7)
    template.stamp(second, 1, 8)
    differing = [i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
    assert differing == [layout.STEP_AT + 19]
    assert image.parse_header(second, len(second)).id == ImageId(1, 8, 0, 0)


def test_equal_states_give_equal_bytes_in_a_used_slot():
    clean, where, crc = make()
    template = image.lay_out(
        PIECES, [("model.tied", "model.w")], run="run7", rank=1, world_size=2, structure="ab12", plain_bytes=10
    )
    used = bytearray(b"\x55" * where.size_bytes)
    template.stamp(used, 3, 100)
    for entry in where.entries:
        used[entry.start : entry.stop] = clean[entry.start : entry.stop]
    image.write_plain(used, where, b'{"lr":0.1}')
    assert image.seal(used, where) == crc
    assert used == clean


def test_plain_values_may_grow_a_quarter_without_moving_anything():
    small = image.lay_out(PIECES, run="r", rank=0, world_size=2, plain_bytes=10_000).layout
    assert image.plain_fits(small, 12_500), "and the most that notes take"
    buffer = bytearray(small.size_bytes)
    image.write_plain(buffer, small, b"x" * 12_500)
    assert image.read_plain(buffer, small) == b"x" * 12_500
    image.write_plain(buffer, small, b"y")
    assert image.read_plain(buffer, small) == b"y"
    assert not any(buffer[small.plain_start + 9 : small.table_start])
    with pytest.raises(CapacityError):
        image.write_plain(buffer, small, b"x" * small.plain_capacity_bytes)


def test_a_length_word_beyond_its_room_is_corrupt():
    buffer, where, _ = make()
    buffer[where.plain_start : where.plain_start + 8] = b"\xff" * 8
    with pytest.raises(CorruptError):
        image.read_plain(buffer, where)


def test_the_seal_is_the_checksum_of_the_whole():
    buffer, where, crc = make([whole("w", (3 * BLOCK_BYTES,), "uint8", 1)])
    assert crc == crc64nvme(buffer) == image.check(buffer, where) == image.check_table(buffer, where)
    words = BlockTable(memoryview(buffer)[where.table_start :], where).words
    assert len(words) == 4
    start, stop = image.block_range(where, 3)
    assert words[3] == crc64nvme(buffer[start:stop])
    assert stop == where.table_start


def test_check_names_the_bad_block():
    buffer, where, _ = make([whole("w", (3 * BLOCK_BYTES,), "uint8", 1)])
    buffer[2 * BLOCK_BYTES + 5] ^= 1
    image.check_table(buffer, where)
    image.check_block(buffer, where, 1)
    with pytest.raises(CorruptError, match="block 2"):
        image.check(buffer, where)


def test_an_image_never_sealed_does_not_pass():
    buffer, where, _ = make()
    buffer[where.table_start :] = bytes(where.size_bytes - where.table_start)
    with pytest.raises(CorruptError):
        image.check(buffer, where)


def test_a_short_buffer_does_not_pass():
    buffer, where, _ = make()
    with pytest.raises(CorruptError):
        image.check(buffer[:-4096], where)


def test_every_single_bit_of_an_image_matters():
    buffer, where, _ = make([whole("w", (2,))], (), plain=b"")
    for bit in np.random.default_rng(1).choice(len(buffer) * 8, 500, replace=False).tolist():
        buffer[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptError):
            image.check(buffer, where)
        buffer[bit // 8] ^= 1 << bit % 8
    image.check(buffer, where)


@pytest.mark.parametrize(
    "piece",
    [
        whole("__holdfast__.x"),
        whole("__metadata__"),
        whole(""),
        whole("x" * 5000),
        whole("w\ud800"),
        whole("w", (3,), "float32", 8),
        whole("w", (3,), "no dtype", 8),
        whole("w", (3,), "odd", 0),
        whole("w", (2**40, 2**40)),
        whole("w", (1,) * 65),
        whole("w", (3,), owner_rank=2),
        Piece("w", (2,), (2,), (3,), "float32", 4),
        Piece("w", (-1,), (2,), (3,), "float32", 4),
        Piece("w", (0,), (2, 1), (3,), "float32", 4),
    ],
    ids=lambda p: repr(p.fqn[:20]),
)
def test_pieces_no_image_can_hold_are_refused(piece):
    with pytest.raises(UsageError):
        image.lay_out([piece], run="r", rank=0, world_size=2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"run": ""},
        {"rank": 2},
        {"world_size": 0},
        {"world_size": 10**6},
        {"image": 1},
        {"structure": "no digest!"},
        {"relies_on": [ImageId(1, 1, 0), ImageId(1, 1, 0)]},
        {"aliases": [("a", "b"), ("b", "c")]},
        {"aliases": [("a", "b"), ("a", "c")]},
        {"aliases": [("w", "b")]},
        {"pieces": [whole("w"), whole("w")]},
    ],
    ids=str,
)
def test_impossible_images_are_refused(wrong):
    arguments = {"pieces": [whole("w")], "aliases": [], "run": "r", "rank": 0, "world_size": 2} | wrong
    with pytest.raises(UsageError):
        image.lay_out(arguments.pop("pieces"), arguments.pop("aliases"), **arguments)


def test_a_header_past_its_limit_is_refused(monkeypatch):
    monkeypatch.setattr(layout, "MAX_HEADER_BYTES", 4096)
    with pytest.raises(CapacityError):
        image.lay_out([whole(f"w{i}") for i in range(100)], run="r", rank=0, world_size=1)


def test_a_table_of_several_pages():
    """600 blocks need 601 words; the layout alone shows it, nothing so large is allocated."""
    where = image.lay_out([whole("w", (600 * BLOCK_BYTES,), "uint8", 1)], run="r", rank=0, world_size=1).layout
    assert where.size_bytes - where.table_start == 8192


def test_the_header_is_json_that_any_reader_reads():
    buffer, where, _ = make()
    header = json.loads(buffer[8 : where.header_bytes])
    assert next(iter(header)) == "__metadata__"
    assert next(reversed(header)) == "__holdfast__.crc64nvme"
    assert json.loads(header["__metadata__"]["holdfast.aliases"]) == {"model.tied": "model.w"}
    pieces = json.loads(header["__metadata__"]["holdfast.pieces"])
    assert pieces["model.big[2:4,0:7]"] == {"fqn": "model.big", "offsets": [2, 0], "shape": [8, 7]}
    assert pieces["model.c"] == {"lengths": [3], "dtype": "complex128", "itemsize": 16}
    assert pieces["rng"] == {"owner_rank": 1}
    assert set(pieces) == {"model.big[2:4,0:7]", "model.c", "model.c2[1:3]", "rng"}
