"""Any plain value whatever comes back as it was, type by type; any bytes whatever are a value or CorruptError."""

import math
from collections import Counter, OrderedDict, defaultdict

import msgspec
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from holdfast.errors import CorruptError
from holdfast.format import plain

TEXT = st.text(st.characters(), max_size=6)  # lone surrogates, too
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**200), 2**200),
    st.floats(),
    TEXT,
    st.sampled_from(["!tuple", "!", "\0", "__holdfast__"]),
    st.binary(max_size=8),
    st.builds(plain.TensorRef, TEXT),
)
DTYPES = hnp.scalar_dtypes().filter(lambda d: d.kind != "O" and d.itemsize)
ARRAYS = hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, min_side=0, max_side=3))
FACTORIES = st.sampled_from([None, int, float, str, bool, list, dict, set, tuple])


def hashable(children):
    return st.one_of(
        st.lists(children, max_size=3).map(tuple),
        st.frozensets(children, max_size=3),
    )


KEYS = st.recursive(SCALARS, hashable, max_leaves=4)


def containers(children):
    dicts = st.dictionaries(KEYS, children, max_size=4)
    return st.one_of(
        st.lists(children, max_size=4),
        st.lists(children, max_size=4).map(tuple),
        st.dictionaries(TEXT, children, max_size=4),
        dicts,
        dicts.map(OrderedDict),
        dicts.map(Counter),
        st.builds(defaultdict, FACTORIES, dicts),
        st.sets(KEYS, max_size=4),
        st.frozensets(KEYS, max_size=4),
    )


NUMPY_SCALARS = ARRAYS.filter(lambda a: a.size).map(lambda a: a.flat[0])
VALUES = st.recursive(SCALARS | ARRAYS | NUMPY_SCALARS, containers, max_leaves=12)


def canon(value):  # noqa: PLR0911  (a line for each kind)
    """Something that is equal for values that are the same in every type, order and bit but those of a nan."""
    kind = type(value)
    if kind is np.ndarray:
        fortran = value.size and value.flags.f_contiguous and not value.flags.c_contiguous
        return kind, value.dtype.str, value.shape, fortran, value.tobytes()
    if isinstance(value, np.generic):
        return kind, value.dtype.str, value.tobytes()
    if kind is float:
        return kind, "nan" if math.isnan(value) else value.hex()
    if kind in (list, tuple):
        return kind, [canon(item) for item in value]
    if isinstance(value, dict):
        items = [(canon(k), canon(v)) for k, v in value.items()]
        return kind, getattr(value, "default_factory", None), items
    if kind in (set, frozenset):
        return kind, sorted(map(repr, map(canon, value)))
    return kind, value


@given(VALUES)
def test_every_value_comes_back(value):
    data = plain.encode(value)
    back = plain.decode(data)
    assert canon(back) == canon(value)
    assert plain.encode(back) == data


@given(VALUES, st.data())
def test_bytes_written_over_raise_nothing_else(value, data):
    encoded = bytearray(plain.encode(value))
    begin = data.draw(st.integers(0, len(encoded)))
    encoded[begin : begin + data.draw(st.integers(0, 3))] = data.draw(
        st.binary(max_size=3) | st.sampled_from([b'"', b"[", b"}", b'{"!set":', b",", b"0", b"-"])
    )
    assert is_value_or_corrupt(bytes(encoded))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | TEXT,
    lambda c: (
        st.lists(c, max_size=3)
        | st.builds(
            lambda tag, body: {f"!{tag}": body},
            st.sampled_from(
                [
                    "int",
                    "float",
                    "str",
                    "bytes",
                    "tuple",
                    "dict",
                    "set",
                    "frozenset",
                    "OrderedDict",
                    "defaultdict",
                    "Counter",
                    "ndarray",
                    "numpy",
                    "tensor",
                    "x",
                ]
            ),
            c | st.lists(st.lists(c, min_size=2, max_size=2), max_size=2),
        )
    ),
    max_leaves=6,
)


@given(JSON)
def test_tags_on_anything_raise_nothing_else(tree):
    try:
        encoded = msgspec.json.encode(tree)
    except UnicodeEncodeError:
        return
    assert is_value_or_corrupt(encoded)


def is_value_or_corrupt(data):
    """Whatever decodes is written back the same: nothing is accepted that we would not have written."""
    try:
        value = plain.decode(data)
    except CorruptError:
        return True
    return plain.encode(value) == data
