"""What is written is what pickle and torch's restricted reader read; what they would not read is refused by name."""

import io
import math
import pickle
from collections import Counter, OrderedDict, defaultdict

import numpy as np
import pytest
from tests.property.test_format_plain_values import canon

from holdfast.errors import UnsupportedValueError
from holdfast.format.pickled.machine import read
from holdfast.format.pickled.meanings import ITEM_BYTES, TORCH_SAVE, StorageRef, TensorView
from holdfast.format.pickled.writing import write
from holdfast.format.plain import Opaque, TensorRef

VALUES = [
    None, True, False, 0, 255, 256, 65535, 65536, -1, 2**31 - 1, -(2**31), 2**31, -(2**31) - 1, 2**63, -(2**63),
    2**2000, 0.5, -0.0, math.inf, math.nan, "", "é\n", "a\ud800", b"", b"\0\xff", [], [1, [2]], (), (1, 2, 3, 4),
    {}, {"a": 1, 2: (3,), (4, "b"): None}, OrderedDict(b=1, a=[2]), OrderedDict(), Counter("abb"), {1, "a"}, set(),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda v: f"{type(v).__name__}-{str(v)[:12]!r}")
def test_plain_values_come_back_from_pickle_and_from_the_machine(value):
    data = write({"a": value, "again": [value]}, {})
    for back in (pickle.loads(data), read(data, TORCH_SAVE)):
        assert canon(back["a"]) == canon(value)
        assert canon(back["again"]) == canon([value])


@pytest.mark.torch
@pytest.mark.parametrize("value", VALUES, ids=lambda v: f"{type(v).__name__}-{str(v)[:12]!r}")
def test_plain_values_come_back_from_torch_s_restricted_reader(value):
    pytest.importorskip("torch")
    from torch import _weights_only_unpickler as restricted

    back = restricted.load(io.BytesIO(write({"a": value}, {})), encoding="utf-8")
    assert canon(back["a"]) == canon(value)


@pytest.mark.torch
def test_torch_s_own_values_come_back_as_torch_s():
    torch = pytest.importorskip("torch")
    from torch import _weights_only_unpickler as restricted

    value = {
        "size": Opaque("torch.Size", [2, 3]),
        "dtypes": [Opaque("torch.dtype", name) for name in ITEM_BYTES],
        "devices": [Opaque("torch.device", "cpu"), Opaque("torch.device", "cuda:1")],
    }
    back = restricted.load(io.BytesIO(write(value, {})), encoding="utf-8")
    assert (back["size"], type(back["size"])) == (torch.Size([2, 3]), torch.Size)
    assert back["dtypes"] == [getattr(torch, name) for name in ITEM_BYTES]
    assert back["devices"] == [torch.device("cpu"), torch.device("cuda:1")]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn", "uint32", "complex128"])
def test_tensors_are_written_as_torch_writes_them(dtype):
    typed = dtype in ("float32", "bfloat16", "complex128")
    storage = StorageRef("7", dtype if typed else None, 6 if typed else 6 * ITEM_BYTES[dtype])
    view = TensorView(storage, dtype, 0, (2, 3), (3, 1))
    back = read(write({"w": TensorRef("w"), "tied": [TensorRef("w")]}, {"w": view}), TORCH_SAVE)
    for found in (back["w"], back["tied"][0]):
        assert (found.dtype, found.offset, found.shape, found.strides) == (dtype, 0, (2, 3), (3, 1))
        assert (found.storage.key, found.storage.dtype, found.storage.size_bytes) == (
            "7", storage.dtype, 6 * ITEM_BYTES[dtype],
        )  # fmt: skip


def test_everything_that_would_not_be_read_is_named_at_once():
    packed = TensorView(StorageRef("0", None, 4), "int4", 0, (4,), (1,))
    value = {
        "good": 1,
        "args": {"frozen": frozenset([1]), "default": defaultdict(int), "array": np.zeros(2), "number": np.float32(1)},
        "list": [1, Opaque("user:mylab.Curriculum", {})],
        "huge": 2**2100,
        "generator": Opaque("torch.Generator", ["cpu", b""]),
        "packed": TensorRef("packed"),
        "dtype": Opaque("torch.dtype", "float99"),
    }
    with pytest.raises(UnsupportedValueError) as caught:
        write(value, {"packed": packed})
    assert caught.value.message == (
        "torch.load(weights_only=True) would not read args.frozen (frozenset), args.default (collections.defaultdict), "
        "args.array (numpy.ndarray), args.number (numpy.float32), list.1 (user:mylab.Curriculum), huge (an int of 263 "
        "bytes), generator (torch.Generator), packed (a tensor of int4), dtype (torch.float99)"
    )
    assert "--without" in caught.value.hint


def test_many_that_would_not_be_read_are_counted():
    with pytest.raises(UnsupportedValueError, match=r"9 more"):
        write({str(n): frozenset() for n in range(29)}, {})
