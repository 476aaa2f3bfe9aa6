"""Pickles read without pickle: what plain values are comes back, all else is refused by its name, and nothing runs."""

import math
import os
import pickle
import struct
from collections import Counter, OrderedDict, defaultdict
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pytest
from tests.property.test_format_plain_values import canon

from holdfast.errors import CorruptError, UnsupportedValueError
from holdfast.format.pickled import machine, opcodes
from holdfast.format.pickled.machine import read
from holdfast.format.pickled.meanings import METADATA, PLAIN, TORCH_SAVE, Record, TensorView
from holdfast.format.plain import MAX_DEPTH, Opaque

PROTOCOLS = [2, 3, 4, 5]
SHARED = [1, "a"]
VALUES: list[Any] = [
    None, True, False, 0, 1, 255, 256, 65535, 65536, -1, 2**31 - 1, -(2**31), 2**31, 2**63, -(2**200), 2**1000,
    0.5, -0.0, math.inf, 5e-324, "", "a", "é\n", "a\ud800", "x" * 70_000, b"", b"\0\xff", b"y" * 70_000,
    [], [1], [1, [2, []]], (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {}, {"a": 1, 2: [3], (4,): None},
    {str(n): n for n in range(3000)}, list(range(3000)), set(), {1, "a"}, frozenset(), frozenset([1, "b"]),
    OrderedDict(b=1, a=2), defaultdict(None, a=1), defaultdict(int, {1: 2}), defaultdict(str), Counter("abb"),
    {"a": SHARED, "b": SHARED, "c": (SHARED, {"d": SHARED})},
]  # fmt: skip
ARRAYS = [
    np.arange(6, dtype="<i2").reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1),
    np.arange(10)[::-2],
    np.array(3.5),
    np.zeros((0, 3)),
    np.array([True, False]),
    np.array(["ab", "é"]),
    np.array([b"ab", b"c"]),
    np.array([1, 2], ">u8"),
    np.array([1 + 2j]),
    np.array(["2026-01-01", "NaT"], "M8[ns]"),
    np.array([1], "m8[s]"),
]
SCALARS = [np.float32(0.1), np.int64(-1), np.bool_(True), np.complex64(1j), np.datetime64("2026-01-01"), np.str_("ab")]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("value", VALUES, ids=lambda v: f"{type(v).__name__}-{str(v)[:12]!r}")
def test_plain_values_come_back_exactly(value, protocol):
    assert canon(read(pickle.dumps(value, protocol), PLAIN)) == canon(value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("value", [*ARRAYS, *SCALARS], ids=lambda v: f"{v.dtype}{v.shape}")
def test_arrays_and_scalars_of_numpy_come_back_exactly(value, protocol):
    back = read(pickle.dumps({"a": value, "again": value}, protocol), PLAIN)
    assert type(back["a"]) is type(value)
    assert (back["a"].dtype.str, back["a"].shape) == (value.dtype.str, value.shape)
    assert back["a"].tobytes() == value.tobytes()
    assert back["again"] is back["a"] or back["again"].tobytes() == value.tobytes()


@pytest.mark.parametrize("factory", [int, float, str, bool, list, dict, set, tuple])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_defaultdict_keeps_its_factory(factory, protocol):
    back = read(pickle.dumps(defaultdict(factory, a=1), protocol), PLAIN)
    assert type(back) is defaultdict
    assert back.default_factory is factory


def test_what_is_shared_stays_shared():
    back = read(pickle.dumps({"a": SHARED, "b": SHARED}), PLAIN)
    assert back["a"] is back["b"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_attributes_of_a_state_dict_are_dropped(protocol):
    value = OrderedDict(weight=1)
    value._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    back = read(pickle.dumps(value, protocol), PLAIN)
    assert (type(back), list(back.items())) == (OrderedDict, [("weight", 1)])
    assert not hasattr(back, "_metadata")


# What is refused -----------------------------------------------------------------------------------------------------
class Boom:
    """Runs a command when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("meanings", [PLAIN, TORCH_SAVE, METADATA], ids=["plain", "torch", "metadata"])
def test_a_function_of_the_attacker_s_is_refused_by_name_and_not_called(protocol, meanings, tmp_path):
    data = pickle.dumps({"a": [1, Boom(tmp_path / "ran")]}, protocol)
    with pytest.raises(UnsupportedValueError, match=r"posix\.system is needed"):
        read(data, meanings)
    assert not (tmp_path / "ran").exists()
    pickle.loads(data)
    assert (tmp_path / "ran").exists(), "the attack is none"


def named(module: str, name: str) -> bytes:
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"."


def stack_named(module: str, name: str) -> bytes:
    texts = [b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name)]
    return b"\x80\x04" + b"".join(texts) + b"\x93."


@pytest.mark.parametrize("spelt", [named, stack_named])
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("builtins", "object"),
        ("collections", "OrderedDict.fromkeys"),
        ("collections.OrderedDict", "fromkeys"),
        ("torch", "Size.__class__"),
        ("torch", "load"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("numpy", "load"),
        ("torch", "float33"),
        ("", ""),
        ("holdfast.format.pickled.machine", "read"),
    ],
)
def test_names_outside_the_table_are_refused(module, name, spelt):
    with pytest.raises(UnsupportedValueError, match="is needed to read it"):
        read(spelt(module, name), PLAIN)


@pytest.mark.parametrize("name", ["RED", "__class__", "TORCH_CHANNELS_LAST"])
def test_getattr_gives_a_memory_format_and_nothing_else(name):
    kind = b"ctorch.distributed.checkpoint.metadata\n_MEM_FORMAT_ENCODING\n"
    text = b"X" + struct.pack("<I", len(name)) + name.encode()
    data = b"\x80\x02cbuiltins\ngetattr\n" + kind + text + b"\x86R."
    if name.startswith("TORCH"):
        assert read(data, METADATA) == name
        data = data.replace(kind, b"ccollections\nOrderedDict\n")
    with pytest.raises(UnsupportedValueError, match="getattr"):
        read(data, METADATA)


@pytest.mark.parametrize("code", sorted(opcodes.REFUSED), ids=lambda code: opcodes.REFUSED[code])
def test_other_opcodes_are_refused_by_name(code):
    name = opcodes.REFUSED[code]
    with pytest.raises(UnsupportedValueError, match=f"the opcode {name} "):
        read(b"\x80\x04(NN" + bytes([code]) + b"1\n1\n.", PLAIN)


def test_every_opcode_of_pickle_is_read_or_refused_by_name():
    import pickletools

    told = {ord(op.code): op.name for op in pickletools.opcodes}
    assert {code: told[code] for code in opcodes.REFUSED} == opcodes.REFUSED
    assert told.keys() - opcodes.REFUSED.keys() == opcodes._READ.keys() | {opcodes.STOP}
    for code in range(256):
        if code not in told:
            with pytest.raises(CorruptError, match="is no opcode"):
                read(b"\x80\x04" + bytes([code]) + b".", PLAIN)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x80\x04N)R.", "a NoneType would be called"),
        (b"\x80\x02c__builtin__\nint\n)R.", "int would be called"),
        (b"\x80\x02c__builtin__\nset\n)\x81.", "set would be called"),
        (b"\x80\x04]}b.", "a list would be built"),
        (b"\x80\x04}}b.", "a dict would be built"),
        (b"\x80\x02NQ.", "refers to something outside"),
        (b"\x80\x06N.", "protocol 6"),
        (b"\x80\x02ccollections\ndefaultdict\ncbuiltins\nbytes\n\x85R.", "defaultdict of a function"),
    ],
)
def test_calls_of_anything_else_are_refused(data, said):
    with pytest.raises(UnsupportedValueError, match=said):
        read(data, PLAIN)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"\x80",
        b"\x80\x04.",
        b"\x80\x04NN.",
        b"\x80\x04N.N",
        b"\x80\x04(N.",
        b"\x80\x04t.",
        b"\x80\x04N\x86.",
        b"\x80\x04h\x00.",
        b"\x80\x04q\x00.",
        b"\x80\x04a.",
        b"\x80\x04NNa.",
        b"\x80\x04](Nu.",
        b"\x80\x04}(Nu.",
        b"\x80\x04}]Ns.",
        b"\x80\x04\x8f(]\x90.",
        b"\x80\x04(]\x91.",
        b"\x80\x04X\xff\xff\xff\xffab.",
        b"\x80\x04\x8d" + b"\xff" * 8 + b".",
        b"\x80\x04X\x01\x00\x00\x00\xff.",
        b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00N.",
        b"\x80\x04NN\x93.",
        b"\x80\x02cos",
        b"\x80\x02c" + b"a" * 600 + b"\nb\n.",
        b"\x80\x02c__builtin__\nset\nN\x85R.",
        b"\x80\x02c__builtin__\nset\nNR.",
        b"\x80\x02ccollections\nCounter\n]\x85R.",
        b"\x80\x02ccollections\nOrderedDict\n]\x85R.",
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00utf8\x86R.",
        b"\x80\x02ctorch\nSize\nN\x85R.",
        b"\x80\x02ctorch\nSize\nJ\xff\xff\xff\xff\x85\x85R.",
        b"\x80\x02ctorch\ndevice\n]\x85R.",
    ],
)
def test_bytes_that_are_no_whole_pickle_are_corrupt(data):
    with pytest.raises(CorruptError):
        read(data, PLAIN)


def test_a_pickle_that_ends_early_is_corrupt_wherever_it_ends():
    value = {"a": [1, 2.5, "text", b"bytes", {1}, OrderedDict(x=np.arange(3))], "b": (2**100, None)}
    for protocol in PROTOCOLS:
        data = pickle.dumps(value, protocol)
        for end in range(len(data)):
            with pytest.raises(CorruptError):
                read(data[:end], PLAIN)


def test_old_protocols_are_refused():
    for protocol in (0, 1):
        with pytest.raises(CorruptError, match="protocol 2 to 5"):
            read(pickle.dumps({"a": 1}, protocol), PLAIN)


@pytest.mark.parametrize(
    "value",
    [np.array([None], object), np.zeros(2, [("a", "i4")]), np.ma.masked_array([1], [True])],
    ids=["objects", "records", "subclass"],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_arrays_without_a_plain_form_are_refused(value, protocol):
    with pytest.raises(UnsupportedValueError):
        read(pickle.dumps(value, protocol), PLAIN)


# Bounds --------------------------------------------------------------------------------------------------------------
def laughs(levels: int, width: int = 10) -> bytes:
    """A tuple of lists, each of which has the one before ten times."""
    lists = [b"](" + b"N" * width + b"e\x94"]
    lists += [b"](" + b"h" + bytes([n]) + (b"h" + bytes([n])) * (width - 1) + b"e\x94" for n in range(levels)]
    return b"\x80\x04(" + b"".join(lists) + b"t."


def test_a_billion_laughs_are_refused_at_once():
    assert len(read(laughs(2), PLAIN)) == 3
    for levels in (8, 20, 50):
        with pytest.raises(CorruptError, match="once it is written out"):
            read(laughs(levels), PLAIN)


def test_what_is_shared_within_reason_is_read():
    row = list(range(100))
    assert read(pickle.dumps([row] * 1000), PLAIN) == [row] * 1000


def test_what_is_large_and_shared_counts_by_its_bytes():
    for large in ("x" * 100_000, b"x" * 100_000, np.zeros(12_500), np.arange(20_000)):
        assert len(read(pickle.dumps([large] * 10), PLAIN)) == 10
        with pytest.raises(CorruptError, match="once it is written out"):
            read(pickle.dumps([large] * 10_000), PLAIN)
    assert len(read(pickle.dumps(["a name of a layer"] * 100_000), PLAIN)) == 100_000


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_value_in_itself_is_refused(protocol):
    inner: list = []
    inner.append({"again": inner})
    with pytest.raises(CorruptError, match="contains itself"):
        read(pickle.dumps(inner, protocol), PLAIN)


@pytest.mark.parametrize(("depth", "fits"), [(MAX_DEPTH, True), (MAX_DEPTH + 1, False), (100_000, False)])
def test_depth_has_a_limit(depth, fits):
    data = b"\x80\x04" + b"]" * depth + b"a" * (depth - 1) + b"."
    if fits:
        read(data, PLAIN)
    else:
        with pytest.raises(CorruptError, match="nested more than"):
            read(data, PLAIN)


def test_depth_counts_where_a_shared_value_is_reached_deep_down():
    inner = b"]" * 40 + b"a" * 39 + b"q\x00"
    data = b"\x80\x04(" + inner + b"]" * 40 + b"h\x00" + b"a" * 40 + b"t."
    with pytest.raises(CorruptError, match="nested more than"):
        read(data, PLAIN)


def test_a_deep_key_is_not_hashed():
    with pytest.raises(CorruptError, match="a key is nested"):
        read(b"\x80\x04})" + b"\x85" * 200_000 + b"Ns.", PLAIN)
    assert read(pickle.dumps({((1, 2), 3): 4}), PLAIN) == {((1, 2), 3): 4}


def test_a_call_that_copies_again_and_again_is_refused():
    text = b"x" * 100_000
    begin = (
        b"\x80\x02c_codecs\nencode\nq\x00X" + struct.pack("<I", len(text)) + text + b"q\x01X\x06\x00\x00\x00latin1q\x02"
    )
    once = b"h\x00h\x01h\x02\x86R"
    for times, fits in ((3, True), (100, False)):
        data = begin + once * times + b"."
        data = data.replace(b"\x80\x02", b"\x80\x02(", 1)[:-1] + b"t."
        if fits:
            read(data, PLAIN)
        else:
            with pytest.raises(CorruptError, match="far more than it contains"):
                read(data, PLAIN)


def test_keys_that_may_be_made_to_collide_are_few():
    few = {(n, n + 1): n for n in range(1000)}
    assert read(pickle.dumps(few), PLAIN) == few
    many = set(range(100_000)) | {f"{n}" for n in range(100_000)}
    assert read(pickle.dumps(many), PLAIN) == many
    for odd in (
        {float(n) for n in range(9000)},
        {2**61 + n for n in range(9000)},
        {(n,) for n in range(9000)},
    ):
        for protocol in (2, 4):
            with pytest.raises(CorruptError, match="no text and no small integer"):
                read(pickle.dumps(odd, protocol), PLAIN)


@pytest.mark.parametrize("n", [opcodes.MAX_LONG_BYTES, opcodes.MAX_LONG_BYTES + 1])
def test_integers_have_a_limit(n):
    data = b"\x80\x04\x8b" + struct.pack("<I", n) + b"\x01" * n + b"."
    if n == opcodes.MAX_LONG_BYTES:
        assert read(data, PLAIN) == int.from_bytes(b"\x01" * n, "little")
    else:
        with pytest.raises(CorruptError, match="an integer of"):
            read(data, PLAIN)


def test_numbers_of_opcodes_and_things_have_limits(monkeypatch):
    data = b"\x80\x04(" + b"N" * 300_000 + b"t."
    assert len(read(data, PLAIN)) == 300_000
    monkeypatch.setattr(machine, "MAX_THINGS", 1000)
    with pytest.raises(CorruptError, match="more than 1000 things"):
        read(data, PLAIN)
    monkeypatch.undo()
    monkeypatch.setattr(machine, "MAX_OPCODES", 2**17)
    with pytest.raises(CorruptError, match="opcodes"):
        read(data, PLAIN)
    monkeypatch.undo()
    monkeypatch.setattr(machine, "MAX_PICKLE_BYTES", 1000)
    with pytest.raises(CorruptError, match="passes the limit"):
        read(data, PLAIN)


# torch's names -------------------------------------------------------------------------------------------------------
@pytest.mark.torch
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_torch_s_own_plain_values(protocol):
    torch = pytest.importorskip("torch")
    value = {
        "size": torch.Size([2, 3]),
        "dtypes": [torch.float32, torch.bfloat16, torch.float8_e4m3fn],
        "devices": [torch.device("cpu"), torch.device("cuda:1")],
    }
    assert read(pickle.dumps(value, protocol), PLAIN) == {
        "size": Opaque("torch.Size", [2, 3]),
        "dtypes": [Opaque("torch.dtype", n) for n in ("float32", "bfloat16", "float8_e4m3fn")],
        "devices": [Opaque("torch.device", n) for n in ("cpu", "cuda:1")],
    }


@pytest.mark.torch
def test_the_dtypes_that_are_known_are_torch_s():
    torch = pytest.importorskip("torch")
    from holdfast.format.pickled.meanings import ITEM_BYTES, STORAGES

    for name, size in ITEM_BYTES.items():
        if (dtype := getattr(torch, name, None)) is not None:
            assert dtype.itemsize == size, name
    told = {str(k).removeprefix("torch."): v for k, v in torch.storage._dtype_to_storage_type_map().items()}
    assert {name: told[name] for name in STORAGES} == STORAGES
    assert all("quint" in name or "qint" in name for name in told.keys() - STORAGES.keys())


@pytest.mark.torch
def test_metadata_of_dcp_come_as_records():
    pytest.importorskip("torch")
    import torch
    from torch.distributed.checkpoint import metadata as dcp
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    chunk = dcp.ChunkStorageMetadata(torch.Size([0]), torch.Size([4]))
    tensor = dcp.TensorStorageMetadata(dcp.TensorProperties(torch.float16), torch.Size([4]), [chunk])
    index = dcp.MetadataIndex("w", torch.Size([0]), 0)
    meta = dcp.Metadata(
        {"w": tensor, "n": dcp.BytesStorageMetadata()},
        planner_data={"w": ("w",), "n": ("list", 0)},
        storage_data={index: _StorageInfo("__0_0.distcp", 3, 5), dcp.MetadataIndex("n"): _StorageInfo("x", 0, 3)},
        storage_meta=dcp.StorageMeta(checkpoint_id=PurePosixPath("/data/step_1")),
        version="1.0.0",
    )
    for protocol in PROTOCOLS:
        found = read(pickle.dumps(meta, protocol), METADATA)
        assert isinstance(found, Record)
        assert found.kind == "Metadata"
        assert found.fields["planner_data"] == {"w": ("w",), "n": ("list", 0)}
        w = found.fields["state_dict_metadata"]["w"]
        assert w.fields["properties"].fields["dtype"] == Opaque("torch.dtype", "float16")
        assert w.fields["chunks"][0].fields["sizes"] == Opaque("torch.Size", [4])
        places = {key.fields["fqn"]: info.fields for key, info in found.fields["storage_data"].items()}
        assert places["w"] == {"relative_path": "__0_0.distcp", "offset": 3, "length": 5}
        assert found.fields["storage_meta"].fields["checkpoint_id"] == "/data/step_1"


def test_a_tensor_is_a_view_of_a_storage():
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQ"
    data = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x01K\x02K\x02\x86K\x02K\x01\x86\x89NtR."
    view = read(data, TORCH_SAVE)
    assert type(view) is TensorView
    assert (view.dtype, view.offset, view.shape, view.strides) == ("float32", 1, (2, 2), (2, 1))
    assert (view.storage.key, view.storage.n_elements, view.storage.size_bytes) == ("0", 6, 24)
    for bad in (data.replace(b"FloatStorage", b"FloatTensor_"), data.replace(b"storagec", b"storagfc")):
        with pytest.raises((CorruptError, UnsupportedValueError)):
            read(bad, TORCH_SAVE)
