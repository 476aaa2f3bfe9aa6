"""Plain values: what goes in comes out, exactly; what cannot is refused by its path."""

import enum
import math
import struct
import time
from collections import Counter, OrderedDict, defaultdict, namedtuple

import numpy as np
import pytest

from holdfast.errors import CorruptError, UnsupportedValueError, UsageError
from holdfast.format import plain
from holdfast.format.plain import Encoder, Opaque, TensorRef

Point = namedtuple("Point", "x y")


class Colour(enum.IntEnum):
    RED = 1


class Celsius:
    def __init__(self, degrees):
        self.degrees = degrees

    def __eq__(self, other):
        return self.degrees == other.degrees

    def __hash__(self):
        return 0


CELSIUS = Encoder(Celsius, "Celsius", lambda c: c.degrees, Celsius)


def through(value, **options):
    return plain.decode(plain.encode(value, encoders=options.get("encoders", ())), decoders=options.get("encoders", ()))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (1, "1"),
        (2**53, "9007199254740992"),
        (2**53 + 1, '{"!int":"0x20000000000001"}'),
        (-(2**200), f'{{"!int":"{hex(-(2**200))}"}}'),
        (1.0, "1.0"),
        (-0.0, "-0.0"),
        (5e-324, "5e-324"),
        (math.inf, '{"!float":"inf"}'),
        (-math.inf, '{"!float":"-inf"}'),
        ("é\n", '"é\\n"'),
        ("a\ud800", '{"!str":"Ye2ggA=="}'),
        (b"\0\xff", '{"!bytes":"AP8="}'),
        ([1, [2]], "[1,[2]]"),
        ((1, ()), '{"!tuple":[1,{"!tuple":[]}]}'),
        ({"b": 1, "a": 2}, '{"b":1,"a":2}'),
        ({1: "a", (2,): "b"}, '{"!dict":[[1,"a"],[{"!tuple":[2]},"b"]]}'),
        ({"!tuple": [1]}, '{"!dict":[["!tuple",[1]]]}'),
        ({"b", "a"}, '{"!set":["a","b"]}'),
        (frozenset([2, 10]), '{"!frozenset":[10,2]}'),
        (OrderedDict(b=1, a=2), '{"!OrderedDict":[["b",1],["a",2]]}'),
        (Counter({5: 2}), '{"!Counter":[[5,2]]}'),
        (TensorRef("model.w"), '{"!tensor":"model.w"}'),
    ],
    ids=lambda x: x if isinstance(x, str) else type(x).__name__,
)
def test_values_and_their_text(value, text):
    data = plain.encode(value)
    assert data.decode() == text
    back = plain.decode(data)
    assert back == value
    assert type(back) is type(value)
    assert isinstance(value, (set, frozenset)) or repr(back) == repr(value), "types within, the sign of zero"


def test_nan_comes_back():
    assert math.isnan(through(math.nan))


@pytest.mark.parametrize("factory", [None, int, float, str, bool, list, dict, set, tuple])
def test_a_defaultdict_keeps_its_factory(factory):
    value: defaultdict = defaultdict(factory, {1: 2})
    back = through(value)
    assert type(back) is defaultdict
    assert back.default_factory is factory
    assert back == {1: 2}


def test_a_counter_of_a_scheduler_still_counts():
    back = through(Counter([10, 20, 20]))
    assert back[99] == 0
    assert back[20] == 2


def test_order_of_a_dict_is_kept_and_that_of_a_set_has_no_influence():
    assert list(through({"z": 1, "a": 2})) == ["z", "a"]
    assert list(through({2: 1, 1: 2})) == [2, 1]
    assert plain.encode({"s": {"x", "y", 3, (1,)}}) == plain.encode({"s": {(1,), 3, "y", "x"}})


def test_true_and_one_and_one_point_nought_stay_apart():
    assert [type(v) for v in through([True, 1, 1.0])] == [bool, int, float]


ARRAYS: list[np.ndarray] = [
    np.array(3.5),
    np.arange(6, dtype="<i2").reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1),
    np.arange(10)[::-2],
    np.array([1.5, -0.0, np.nan], ">f8"),
    np.array([True, False]),
    np.array([1 + 2j], np.complex64),
    np.array(["", "é"]),
    np.array([b"a\0", b""]),
    np.array([], np.float16),
    np.zeros((0, 3), order="F"),
    np.zeros((3, 0, 2)),
    np.array(["2024-01-01", "NaT"], "M8[ns]"),
    np.array([5], "m8[25s]"),
    np.random.default_rng(0).integers(0, 2**32, 624, np.uint32),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype.str}-{a.shape}")
def test_numpy_arrays_bit_by_bit(array):
    back = through(array)
    assert (back.dtype.str, back.shape, back.tobytes()) == (array.dtype.str, array.shape, array.tobytes())
    assert back.flags.writeable
    if array.size and (array.flags.c_contiguous or array.flags.f_contiguous):
        assert back.strides == array.strides


@pytest.mark.parametrize(
    "scalar",
    [
        np.float32(0.1),
        np.float64(-0.0),
        np.int64(-5),
        np.bool_(True),
        np.uint8(255),
        np.complex128(1j),
        np.str_("é"),
        np.str_(""),
        np.str_("\ud800\0"),
        np.bytes_(b"a\0"),
        np.bytes_(b""),
        np.datetime64("2024-01-01", "D"),
        np.float16("nan"),
        np.longdouble(1) / 3,
    ],
    ids=repr,
)
def test_numpy_scalars_keep_type_and_bits(scalar):
    back = through(scalar)
    assert type(back) is type(scalar)
    assert (back.dtype, back.tobytes()) == (scalar.dtype, scalar.tobytes())
    assert back == scalar or np.isnan(scalar)


def test_a_numpy_random_state_goes_on_where_it_was():
    first, second = np.random.RandomState(7), np.random.RandomState(0)
    first.normal(size=3)
    second.set_state(through(first.get_state()))
    assert first.normal(size=5).tolist() == second.normal(size=5).tolist()


def test_a_python_random_state_comes_back():
    import random

    state = random.Random(3).getstate()
    assert through(state) == state


# Refusals ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("value", "path"),
    [
        (object(), "state is a builtins.object"),
        ({"a": [0, 1, 2, object()]}, "state['a'][3] is a"),
        ({"a": {1: Point(1, 2)}}, "state['a'][1] is a"),
        ({"a": (Colour.RED,)}, "state['a'][0] is a"),
        ({"a": type("S", (str,), {})("x")}, "state['a'] is a"),
        ({"a": type("D", (dict,), {})(x=1)}, "state['a'] is a"),
        ({Colour.RED: 1}, "state.key(<Colour.RED: 1>) is a"),
        ({"s": {Point(1, 2)}}, "state['s'].member(Point(x=1, y=2)) is a"),
        ({"d": defaultdict(lambda: 0)}, "state['d'] is a defaultdict of"),
        ({"f": len}, "state['f'] is a"),
        ({"x": bytearray(b"x")}, "state['x'] is a"),
        ({"x": 1j}, "state['x'] is a"),
        ({"x": range(3)}, "state['x'] is a"),
        ({"x": np.array([object()])}, "state['x'] is a numpy.ndarray"),
        ({"x": np.zeros(2, [("a", "i4")])}, "state['x'] is a numpy.ndarray"),
        ({"x": np.ma.array([1])}, "state['x'] is a"),
        ({"x": np.ndarray((2,), "U0")}, "state['x'] is a"),
        ({"x": np.zeros(2, [("a", "i4")])[0]}, "state['x'] is a"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_has_no_exact_form_is_refused_with_its_path(value, path):
    with pytest.raises(UnsupportedValueError) as caught:
        plain.encode(value)
    assert caught.value.message.startswith(path)
    assert caught.value.hint


def test_cycles_are_refused():
    items: list = [1]
    value = {"a": items}
    items.append(value)
    with pytest.raises(UnsupportedValueError, match=r"state\['a'\]\[1\] contains itself"):
        plain.encode(value)


def test_the_same_value_twice_is_no_cycle():
    shared = [1]
    assert through([shared, shared, {"x": shared}]) == [[1], [1], {"x": [1]}]


def test_nesting_has_a_limit_that_both_sides_hold():
    def nest(n):
        value: object = 1
        for i in range(n):
            value = [lambda v: [v], lambda v: {"a": v}, lambda v: (v,), lambda v: {1: v}][i % 4](value)
        return value

    assert through(nest(plain.MAX_DEPTH)) == nest(plain.MAX_DEPTH)
    with pytest.raises(UnsupportedValueError, match="nested"):
        plain.encode(nest(plain.MAX_DEPTH + 1))
    with pytest.raises(CorruptError):
        plain.decode(b"[" * (plain.MAX_DEPTH + 2) + b"]" * (plain.MAX_DEPTH + 2))


def test_the_root_of_the_path_can_be_named():
    with pytest.raises(UnsupportedValueError, match=r"^sampler\['x'\]"):
        plain.encode({"x": object()}, root="sampler")


def test_too_much_is_refused(monkeypatch):
    from holdfast.format.plain import writing

    monkeypatch.setattr(writing, "MAX_PLAIN_BYTES", 100)
    with pytest.raises(UnsupportedValueError, match="limit"):
        plain.encode("x" * 100)


# Encoders ------------------------------------------------------------------------------------------------------------
def test_an_encoder_makes_a_type_plain():
    value = {"t": Celsius(21.5), "more": [Celsius([1, (2,)])]}
    data = plain.encode(value, encoders=[CELSIUS])
    assert data == b'{"t":{"!Celsius":21.5},"more":[{"!Celsius":[1,{"!tuple":[2]}]}]}'
    assert plain.decode(data, decoders=[CELSIUS]) == value


def test_a_plain_tuple_will_do_as_encoder():
    assert through(Celsius(1), encoders=[tuple(CELSIUS)]) == Celsius(1)


def test_without_its_encoder_a_tag_is_refused_or_kept():
    data = plain.encode({"t": Celsius((1,))}, encoders=[CELSIUS])
    with pytest.raises(CorruptError, match="Celsius"):
        plain.decode(data)
    kept = plain.decode(data, keep_unknown=True)
    assert kept == {"t": Opaque("Celsius", (1,))}
    assert plain.encode(kept) == data


def test_subclasses_are_not_encoded_by_their_parents_encoder():
    with pytest.raises(UnsupportedValueError):
        plain.encode(type("Sub", (Celsius,), {})(1), encoders=[CELSIUS])


def test_an_encoder_that_fails_names_the_place():
    broken = Encoder(Celsius, "Celsius", lambda c: 1 / 0, Celsius)
    with pytest.raises(UnsupportedValueError, match=r"state\[0\] could not be encoded as Celsius"):
        plain.encode([Celsius(1)], encoders=[broken])


def test_a_decoder_that_fails_is_corruption():
    broken = Encoder(Celsius, "Celsius", lambda c: c.degrees, lambda d: 1 / 0)
    with pytest.raises(CorruptError):
        plain.decode(b'{"!Celsius":1}', decoders=[broken])


@pytest.mark.parametrize("tag", ["tuple", "tensor", "ndarray", ""])
def test_our_own_tags_are_not_for_encoders(tag):
    with pytest.raises(UsageError):
        plain.encode(1, encoders=[CELSIUS._replace(tag=tag)])


def test_two_encoders_may_not_share():
    with pytest.raises(UsageError):
        plain.encode(1, encoders=[CELSIUS, CELSIUS._replace(tag="Other")])
    with pytest.raises(UsageError):
        plain.decode(b"1", decoders=[CELSIUS, CELSIUS._replace(type=int)])


# Hostile bytes -------------------------------------------------------------------------------------------------------
HOSTILE = [
    b"",
    b"nul",
    b"1 ",
    b"[1, 2]",
    b"NaN",
    b"1e400",
    b"1E5",
    b"-0",
    b"01",
    b"9007199254740993",
    b"1" * 5000,
    b'"\xff"',
    b'"\\ud800"',
    b'"\\u0061"',
    b'{"a":1,"a":2}',
    b'{"!tuple":[1],"a":2}',
    b'{"a":2,"!tuple":[1]}',
    b'{"!tuple":1}',
    b'{"!tuple":null}',
    b'{"!nothing":1}',
    b'{"!":1}',
    b'{"!int":1}',
    b'{"!int":"0x1"}',
    b'{"!int":"0x0020000000000001"}',
    b'{"!int":"x"}',
    b'{"!float":"1.0"}',
    b'{"!float":"NaN"}',
    b'{"!str":"YQ=="}',
    b'{"!bytes":"AP8"}',
    b'{"!bytes":"AP9="}',
    b'{"!bytes":"A P8="}',
    b'{"!set":[2,1]}',
    b'{"!set":[1,1]}',
    b'{"!set":[1,true]}',
    b'{"!set":[[]]}',
    b'{"!dict":[["a",1]]}',
    b'{"!dict":[]}',
    b'{"!dict":[[1,1],[1,2]]}',
    b'{"!dict":[[1]]}',
    b'{"!dict":[[[],1]]}',
    b'{"!OrderedDict":[[1,1],[true,2]]}',
    b'{"!defaultdict":["eval",[]]}',
    b'{"!defaultdict":[["int"],[]]}',
    b'{"!defaultdict":["int"]}',
    b'{"!tensor":1}',
    b'{"!tensor":["a"]}',
    b'{"!ndarray":[]}',
    b'{"!ndarray":["<f4",[1],"C",""]}',
    b'{"!ndarray":["<f4",[-1],"C",""]}',
    b'{"!ndarray":["<f4",[true],"C","AAAAAA=="]}',
    b'{"!ndarray":["<f4",[0,4611686018427387903,4611686018427387903],"C",""]}',
    b'{"!ndarray":["<U0",[4611686018427387903],"C",""]}',
    b'{"!ndarray":["<f4",[1],"K","AAAAAA=="]}',
    b'{"!ndarray":["<f4",[1],"F","AAAAAA=="]}',
    b'{"!ndarray":["|O",[1],"C","AAAAAAAAAAA="]}',
    b'{"!ndarray":["f4",[1],"C","AAAAAA=="]}',
    b'{"!ndarray":["=f4",[1],"C","AAAAAA=="]}',
    b'{"!ndarray":["<f5",[1],"C","AAAAAAA="]}',
    b'{"!ndarray":["|V4",[1],"C","AAAAAA=="]}',
    b'{"!ndarray":["|b1",[1],"C","Ag=="]}',
    b'{"!ndarray":["<U1",[1],"C","AAARAA=="]}',
    b'{"!ndarray":["<U999999999",[0],"C","AA=="]}',
    b'{"!ndarray":["<U0",[1],"C",""]}',
    b'{"!numpy":["<f4","AAAA"]}',
    b'{"!numpy":["U","/w=="]}',
    b'{"!numpy":["<U1","YQAAAA=="]}',
    b'{"!numpy":["<f4",1]}',
    b'{"!numpy":"<f4"}',
    b'{"!numpy":["<M8[foo]","AAAAAAAAAAA="]}',
    b"[" * 100_000,
    b'{"!tuple":[' * 100_000,
    b'{"a":' * 100_000,
]


def is_corrupt(data):
    try:
        plain.decode(data)
    except CorruptError:
        return True
    return False


def test_bytes_that_encode_never_writes_are_corrupt():
    assert [data[:60] for data in HOSTILE if not is_corrupt(data)] == []


def test_hostile_bytes_are_refused_quickly():
    began = time.monotonic()
    assert is_corrupt(b"[" * 4_000_000)
    assert is_corrupt(b'{"!int":"0x' + b"f" * 4_000_000)
    assert is_corrupt(b"[" + b'{"!tuple":' * 400_000)
    assert is_corrupt(b"[" + b"1," * 2_000_000)
    assert time.monotonic() - began < 2


def test_a_deep_caller_gets_an_error_of_ours():
    """Near the end of the stack nothing else may come out."""
    value: object = [[[[[[[[1]]]]]]]]
    data, seen = plain.encode(value), set()

    def deeper():
        try:
            plain.encode(value)
        except UnsupportedValueError:
            seen.add("encode")
        try:
            plain.decode(data)
        except CorruptError:
            seen.add("decode")
        deeper()

    with pytest.raises(RecursionError):
        deeper()
    assert seen == {"encode", "decode"}


def test_floats_are_exact():
    for bits in np.random.default_rng(0).integers(0, 2**64, 2000, np.uint64).tolist():
        value = struct.unpack("<d", struct.pack("<Q", bits))[0]
        if not math.isnan(value):
            assert struct.pack("<d", through(value)) == struct.pack("<Q", bits)
