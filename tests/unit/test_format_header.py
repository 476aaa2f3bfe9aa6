"""Headers written by an enemy: each malformation is CorruptError, quickly, whatever it is."""

import json
import time

import pytest

from holdfast.errors import CorruptError, FormatVersionError
from holdfast.format import image
from holdfast.model.image import Piece

PIECES = (
    Piece("a", (0,), (3,), (3,), "float32", 4),
    Piece("b", (1, 0), (2, 4), (3, 4), "float32", 4),
    Piece("c", (0,), (2,), (2,), "complex128", 16),
)
TEMPLATE = image.lay_out(PIECES, [("t", "a")], run="r", rank=0, world_size=2)
SIZE = TEMPLATE.layout.size_bytes
DATA = SIZE - TEMPLATE.layout.header_bytes
NOTHING = {"dtype": "U8", "shape": [0], "data_offsets": [DATA, DATA]}
TABLE, PLAIN, PAD = "__holdfast__.crc64nvme", "__holdfast__.plain", "__holdfast__.pad.0"


def pack(raw: bytes) -> bytes:
    padded = raw.ljust(-(-(len(raw) + 8) // 4096) * 4096 - 8)
    return len(padded).to_bytes(8, "little") + padded


def altered(alter):
    header = json.loads(TEMPLATE.header[8:])
    alter(header)
    return pack(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass"))


def nested(field, alter):
    """Alter the JSON inside one of the metadata strings."""

    def apply(header):
        inner = json.loads(header["__metadata__"][f"holdfast.{field}"])
        alter(inner)
        header["__metadata__"][f"holdfast.{field}"] = json.dumps(inner, separators=(",", ":"))

    return apply


def offsets(name, start, stop):
    return lambda h: h[name].update(data_offsets=[start, stop])


def moved_to_end(name):
    return lambda h: h.update({name: h.pop(name)})


def meta(**values):
    return lambda h: h["__metadata__"].update({f"holdfast.{k}": v for k, v in values.items()})


def test_the_unaltered_header_passes():
    assert altered(lambda h: None) == TEMPLATE.header
    image.parse_header(TEMPLATE.header, SIZE)


ALTERED = {
    "overlap": offsets("b[1:3,0:4]", 0, 32),
    "hole": offsets("b[1:3,0:4]", 128, 160),
    "negative": offsets("a", -12, 0),
    "huge": offsets("a", 0, 10**40),
    "longer than its shape": offsets("a", 0, 64),
    "shape is huge": lambda h: h["a"].update(shape=[2**61, 2**61]),
    "shape is negative": lambda h: h["a"].update(shape=[-3]),
    "shape is a float": lambda h: h["a"].update(shape=[3.0]),
    "shape is a bool": lambda h: h["a"].update(shape=[True]),
    "65 dimensions": lambda h: h["a"].update(shape=[1] * 64 + [3]),
    "unknown dtype": lambda h: h["a"].update(dtype="F128"),
    "other dtype": lambda h: h["a"].update(dtype="F64"),
    "a field too many": lambda h: h["a"].update(color="red"),
    "a field too few": lambda h: h["a"].pop("shape"),
    "an entry is a list": lambda h: h.update(a=[]),
    "not aligned": lambda h: [
        offsets("a", 0, 12)(h),
        h[PAD].update(shape=[51], data_offsets=[12, 63]),
        offsets("b[1:3,0:4]", 63, 95)(h),
    ],
    "reserved name": lambda h: h.update({"__holdfast__.other": NOTHING}),
    "table too short": lambda h: h[TABLE].update(shape=[511], data_offsets=[DATA - 4096, DATA - 8]),
    "no table": lambda h: h.pop(TABLE),
    "no plain": lambda h: h.pop(PLAIN),
    "table not last": moved_to_end(PLAIN),
    "entry behind plain": moved_to_end("c"),
    "pad numbered wrong": lambda h: h.update({"__holdfast__.pad.7": h.pop(PAD)}),
    "pad of another dtype": lambda h: h[PAD].update(dtype="I8"),
    "table of another dtype": lambda h: h[TABLE].update(dtype="I64"),
    "plain with two dimensions": lambda h: h[PLAIN].update(shape=[1, *h[PLAIN]["shape"]]),
    "no metadata": lambda h: h.pop("__metadata__"),
    "metadata too little": lambda h: h["__metadata__"].pop("holdfast.image"),
    "metadata too much": meta(color="red"),
    "metadata no strings": meta(attempt=1),
    "attempt not in digits": meta(attempt="1".rjust(20)),
    "attempt in other digits": meta(attempt="\u0661" * 20),
    "attempt too large": meta(attempt="9" * 20),
    "step too large": meta(step="9" * 20),
    "inner JSON broken": meta(image="{"),
    "inner JSON deep": meta(pieces="[" * 5000),
    "inner JSON spaced": meta(aliases="{} "),
    "inner duplicate": meta(aliases='{"t":"a","t":"a"}'),
    "rank outside": nested("image", lambda i: i.update(rank=2)),
    "rank negative": nested("image", lambda i: i.update(rank=-1)),
    "world too large": nested("image", lambda i: i.update(world_size=10**9)),
    "image outside": nested("image", lambda i: i.update(image=1)),
    "structure no digest": nested("image", lambda i: i.update(structure="x" * 1000)),
    "relies on nonsense": nested("image", lambda i: i.update(relies_on=[[1, 2, 3]])),
    "run is empty": nested("image", lambda i: i.update(run="")),
    "alias of an entry's name": meta(aliases='{"a":"x"}'),
    "alias reserved": nested("aliases", lambda a: a.update({TABLE: "a"})),
    "note on nothing": nested("pieces", lambda p: p.update(x={"owner_rank": 0})),
    "note on a pad": nested("pieces", lambda p: p.update({PAD: {"owner_rank": 0}})),
    "notes in another order": nested("pieces", lambda p: p.update({"b[1:3,0:4]": p.pop("b[1:3,0:4]")})),
    "note without need": nested("pieces", lambda p: p.update(a={})),
    "note that repeats": nested("pieces", lambda p: p.update(a={"dtype": "float32", "itemsize": 4})),
    "owner outside": nested("pieces", lambda p: p.update(a={"owner_rank": 2})),
    "piece outside its tensor": nested("pieces", lambda p: p["b[1:3,0:4]"].update(offsets=[2, 0])),
    "piece of other dimensions": nested("pieces", lambda p: p["b[1:3,0:4]"].update(offsets=[1])),
    "shape beyond reason": nested("pieces", lambda p: p["b[1:3,0:4]"].update(shape=[2**62, 2**62])),
    "another fqn than the name": nested("pieces", lambda p: p["b[1:3,0:4]"].update(fqn="x")),
    "another size than the entry": nested("pieces", lambda p: p["c"].update(lengths=[3])),
    "form of no end": nested("pieces", lambda p: p["c"].update(form="x" * 65537)),
    "form that is none": nested("pieces", lambda p: p["c"].update(form=7)),
    "itemsize nil": nested("pieces", lambda p: p["c"].update(itemsize=0)),
    "dtype no name": nested("pieces", lambda p: p["c"].update(dtype="__import__('os')")),
    "lone surrogate": lambda h: h.update({"\ud800": h.pop("a")}),
}


def is_corrupt(header, size=SIZE):
    try:
        image.parse_header(header, size)
    except CorruptError:
        return True
    return False


def test_an_altered_header_is_corrupt():
    assert [name for name, alter in ALTERED.items() if not is_corrupt(altered(alter))] == []


GOOD = TEMPLATE.header[8:].rstrip()
RAW = {
    "empty": b"",
    "not JSON": b"hello",
    "array": b"[]",
    "empty object": b"{}",
    "deep": b"[" * 5000,
    "NaN": GOOD.replace(b'"shape":[3]', b'"shape":[NaN]', 1),
    "exponent": GOOD.replace(b'"shape":[3]', b'"shape":[3e0]', 1),
    "space": GOOD.replace(b'"shape":[3]', b'"shape": [3]', 1),
    "duplicate key": GOOD.replace(b'"a":{', b'"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},"a":{', 1),
    "duplicate field": GOOD.replace(b'"dtype":"F32"', b'"dtype":"F32","dtype":"F32"', 1),
    "escaped name": GOOD.replace(b'"a":{', b'"\\u0061":{', 1),
    "not UTF-8": GOOD.replace(b'"a":{', b'"\xff":{', 1),
    "trailing": GOOD + b"}",
    "newline at the end": GOOD + b"\n",
}


def test_other_spellings_are_corrupt():
    assert [name for name, raw in RAW.items() if not is_corrupt(pack(raw))] == []


def test_another_size_than_the_header_says_is_corrupt():
    sizes = [0, 1, 4096, 12288, SIZE - 4096, SIZE + 4096, SIZE + 1, 2**63, -4096]
    assert [size for size in sizes if not is_corrupt(TEMPLATE.header, size)] == []


@pytest.mark.parametrize("length", [0, 1, 4087, 4089, 32 * 2**20 + 4088, 2**63, 2**64 - 8])
def test_a_length_no_header_has_is_refused_before_it_is_read(length):
    asked = []

    def read(offset, n_bytes):
        asked.append(n_bytes)
        return length.to_bytes(8, "little") if offset == 0 else b""

    with pytest.raises(CorruptError):
        image.parse_header(read, 2**40)
    assert asked == [8]


def test_a_reader_that_answers_short_is_corrupt():
    with pytest.raises(CorruptError):
        image.parse_header(TEMPLATE.header[:1000], SIZE)
    with pytest.raises(CorruptError):
        image.parse_header(b"", SIZE)


def test_padding_by_more_than_a_page_is_corrupt():
    raw = TEMPLATE.header[8:].rstrip()
    assert is_corrupt((3 * 4096 - 8).to_bytes(8, "little") + raw.ljust(3 * 4096 - 8))


def test_a_newer_version_is_told_apart():
    with pytest.raises(FormatVersionError):
        image.parse_header(altered(meta(format="1", more="x")), SIZE)


def test_somebody_elses_safetensors_is_corrupt():
    raw = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    with pytest.raises(CorruptError):
        image.parse_header(len(raw).to_bytes(8, "little") + raw + bytes(8), len(raw) + 16)


BEGIN = TEMPLATE.header[8 : TEMPLATE.header.index(b'"},"') + 3]
FLOODS = {
    "empty entries": BEGIN + b'"a":{},' * 500_000 + b'"b":{}}',
    "the same entry": BEGIN + b'"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},' * 100_000 + b'"b":{}}',
    "numbers": BEGIN + b'"a":{"dtype":"F32","shape":[' + b"9," * 2_000_000 + b'9],"data_offsets":[0,4]}}',
    "digits": BEGIN + b'"a":{"dtype":"F32","shape":[' + b"9" * 4_000_000 + b"]}}",
    "depth": BEGIN + b'"a":{"dtype":' + b"[" * 4_000_000,
    "backslashes": BEGIN + b'"' + b"\\" * 4_000_000,
    "brackets in metadata": BEGIN[:-3] + b"[" * 4_000_000 + BEGIN[-3:] + b'"a":{}}',
    "metadata without end": BEGIN[:-3] + b'\\"' * 2_000_000,
}


def test_floods_are_refused_quickly():
    for name, raw in FLOODS.items():
        header, began = pack(raw), time.monotonic()
        assert is_corrupt(header, 2**40), name
        assert time.monotonic() - began < 2, name
