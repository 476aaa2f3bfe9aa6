"""Any plain value comes back through its pickle; any bytes whatever are a value or an error of ours, and soon."""

import contextlib
import pickle
import time
import tracemalloc
from collections import Counter, OrderedDict, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.property.test_format_plain_values import ARRAYS, FACTORIES, TEXT, canon

from holdfast.errors import CorruptError, UnsupportedValueError
from holdfast.format.pickled.archive import read_directory
from holdfast.format.pickled.machine import read
from holdfast.format.pickled.meanings import METADATA, PLAIN, TORCH_SAVE

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**200), 2**200),
    st.floats(),
    TEXT,
    st.binary(max_size=8),
)
SCALARS = ARRAYS.filter(lambda a: a.size and a.dtype.kind not in "SU").map(lambda a: a.flat[0])
KEYS = st.recursive(
    LEAVES,
    lambda children: st.one_of(
        st.lists(children, max_size=3).map(tuple),
        st.frozensets(children, max_size=3),
    ),
    max_leaves=4,
)


def containers(children):
    dicts = st.dictionaries(KEYS, children, max_size=4)
    return st.one_of(
        st.lists(children, max_size=4),
        st.lists(children, max_size=4).map(tuple),
        dicts,
        dicts.map(OrderedDict),
        dicts.map(Counter),
        st.builds(defaultdict, FACTORIES, dicts),
        st.sets(KEYS, max_size=4),
        st.frozensets(KEYS, max_size=4),
        st.builds(lambda x: [x, x, {"again": x}], children),
    )


VALUES = st.recursive(LEAVES | ARRAYS | SCALARS, containers, max_leaves=12)
PROTOCOLS = st.integers(2, 5)
MEANINGS = st.sampled_from([PLAIN, TORCH_SAVE, METADATA])


@given(VALUES, PROTOCOLS)
def test_every_value_comes_back(value, protocol):
    assert canon(read(pickle.dumps(value, protocol), PLAIN)) == canon(value)


def is_value_or_refused(data, meanings):
    with contextlib.suppress(CorruptError, UnsupportedValueError):
        read(data, meanings)
    return True


PIECES = st.sampled_from(
    [bytes([code]) for code in range(256)]
    + [
        b"ccollections\nOrderedDict\n",
        b"c__builtin__\nset\n",
        b"ctorch\nSize\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch.distributed.checkpoint.metadata\nMetadata\n",
        b"cnumpy\ndtype\n",
        b"X\x01\x00\x00\x00a",
        b"K\x01",
        b"h\x00",
        b"q\x00",
        b"]\x94",
        b"}\x94",
        b")R",
        b")\x81}b",
    ]
)


@given(st.lists(PIECES, max_size=40), MEANINGS)
def test_opcodes_in_any_order_raise_nothing_else(pieces, meanings):
    assert is_value_or_refused(b"\x80\x04" + b"".join(pieces) + b".", meanings)


@given(st.binary(max_size=200), MEANINGS)
def test_any_bytes_raise_nothing_else(data, meanings):
    assert is_value_or_refused(b"\x80\x02" + data, meanings)
    assert is_value_or_refused(data, meanings)


@given(VALUES, PROTOCOLS, MEANINGS, st.data())
def test_bytes_written_over_raise_nothing_else(value, protocol, meanings, data):
    good = bytearray(pickle.dumps(value, protocol))
    begin = data.draw(st.integers(0, len(good)))
    good[begin : begin + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4) | PIECES)
    assert is_value_or_refused(bytes(good), meanings)


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_any_bytes_are_a_zip_or_corrupt(head, tail):
    data = head + b"PK\x05\x06" + tail

    def look(offset, n_bytes):
        assert 0 <= offset <= offset + n_bytes <= len(data)
        return data[offset : offset + n_bytes]

    with contextlib.suppress(CorruptError, UnsupportedValueError):
        read_directory(look, len(data))


MIB = 2**20


def filled(begin: bytes, unit: bytes, end: bytes, size: int) -> bytes:
    """A pickle of so many bytes."""
    return begin + unit * ((size - len(begin) - len(end)) // len(unit)) + end


def long_list(size: int) -> bytes:
    return b"\x80\x04(](" + b"K\x01" * (size // 4) + b"e\x94"


HOSTILE = {
    "lists": lambda size: filled(b"\x80\x04(", b"]", b"t.", size),
    "sets": lambda size: filled(b"\x80\x04(", b"\x8f", b"t.", size),
    "memo": lambda size: filled(b"\x80\x04(", b"]\x94", b"t.", size),
    "tuples": lambda size: filled(b"\x80\x04(", b"N\x85", b"t.", size),
    "marks": lambda size: filled(b"\x80\x04", b"(", b".", size),
    "nested": lambda size: filled(b"\x80\x04(", b")\x85", b"t.", size),
    "shared": lambda size: filled(b"\x80\x04(}\x94", b"h\x00", b"t.", size),
    "calls": lambda size: filled(b"\x80\x04(ccollections\nOrderedDict\n\x94", b"h\x00)R", b"t.", size),
    "long-shared": lambda size: filled(long_list(size), b"h\x00", b"t.", size),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_megabyte_is_read_or_refused_soon(kind):
    data = HOSTILE[kind](MIB)
    assert len(data) <= MIB
    began = time.process_time()
    is_value_or_refused(data, PLAIN)
    assert time.process_time() - began < 20, "2 s, where nothing else keeps the processor"


@pytest.mark.parametrize("kind", HOSTILE)
def test_memory_is_in_proportion_to_the_file(kind):
    """At most 256 MiB for a megabyte, of which an eighth is tried: looking on takes its time."""
    data = HOSTILE[kind](MIB // 8)
    tracemalloc.start()
    try:
        is_value_or_refused(data, PLAIN)
        assert tracemalloc.get_traced_memory()[1] < 32 * MIB
    finally:
        tracemalloc.stop()


@settings(max_examples=10)
@given(st.binary(min_size=1, max_size=64), st.integers(0, 3))
def test_a_megabyte_of_anything_repeated_is_too(unit, cut):
    data = b"\x80\x04" + (unit * (MIB // len(unit)))[cut:] + b"."
    began = time.process_time()
    is_value_or_refused(data, TORCH_SAVE)
    assert time.process_time() - began < 20
