"""numpy arrays and scalars as plain values, bit by bit. numpy is only imported where one of them turns up.

    {"!ndarray":["<f4",[2,3],"C","<base64>"]}      dtype, shape, order, bytes in that order
    {"!numpy":["<f4","<base64>"]}                  a scalar
    {"!numpy":["U","<base64>"]}                    numpy.str_ by its UTF-8; "S" for numpy.bytes_

Dtypes with Python objects inside, and structured ones, are refused.
"""

from __future__ import annotations

import base64
import importlib
import math
import re
import sys
from collections.abc import Sequence
from typing import Any

from holdfast.errors import CorruptError
from holdfast.format.checksum import Buffer

_DTYPE = re.compile(r"[<>|](?:[biufcSU][1-9][0-9]{0,8}|[mM]8(?:\[[0-9]{0,9}[a-zA-Z]{1,2}\])?)")
_MAX_DIMS = 32
_MAX_CODE_POINT = 0x10FFFF


def to_tree(value: Any) -> dict[str, Any] | None:
    """The tagged form of a numpy value; None if it is none that can be expressed."""
    np = sys.modules.get("numpy")
    if np is None:
        return None
    kind = type(value)
    if kind is np.str_ or kind is np.bytes_:  # their dtype does not tell "" from "\0"
        data = value.encode("utf-8", "surrogatepass") if kind is np.str_ else bytes(value)
        return {"!numpy": ["U" if kind is np.str_ else "S", base64.b64encode(data).decode()]}
    if kind is not np.ndarray and not (isinstance(value, np.generic) and kind.__module__ == "numpy"):
        return None
    if not _DTYPE.fullmatch(value.dtype.str) or value.dtype.names is not None or value.ndim > _MAX_DIMS:
        return None
    if kind is np.ndarray:
        return _array_to_tree(value)
    return {"!numpy": [value.dtype.str, base64.b64encode(value.tobytes()).decode()]}


def _array_to_tree(value: Any) -> dict[str, Any]:
    order = _order(value)
    data = base64.b64encode(value.tobytes(order)).decode()
    return {"!ndarray": [value.dtype.str, list(value.shape), order, data]}


def _order(array: Any) -> str:
    """The order its bytes are written in: its own if it is contiguous."""
    return "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"


def array_from(body: Any) -> Any:
    """The array of a tagged form; any exception means that it is none."""
    dtype_str, shape, order, text = body
    array = array_of(dtype_str, shape, order, _data(text))
    if _order(array) != order:
        raise CorruptError("an array's order is not in canonical form")
    return array


def array_of(dtype_str: Any, shape: Sequence[Any], order: Any, data: Buffer) -> Any:
    """The array of these bytes, which are copied; any exception means that there is none."""
    if len(shape) > _MAX_DIMS or not all(type(n) is int and 0 <= n < 2**62 for n in shape):
        raise CorruptError("an array has an impossible shape")
    dtype = _dtype(dtype_str)
    if math.prod(shape) * dtype.itemsize != len(data):
        raise CorruptError("an array's bytes do not fit its shape")
    np = importlib.import_module("numpy")
    array = np.ndarray(tuple(shape), dtype, bytearray(data), order=order)
    _check_items(array, data)
    return array


def scalar_from(body: Any) -> Any:
    """The scalar of a tagged form; any exception means that it is none."""
    dtype_str, text = body
    np, data = importlib.import_module("numpy"), _data(text)
    if dtype_str == "U":
        return np.str_(data.decode("utf-8", "surrogatepass"))
    if dtype_str == "S":
        return np.bytes_(data)
    if _dtype(dtype_str).kind in "SU":
        raise CorruptError("a scalar's bytes do not fit its dtype")
    return scalar_of(dtype_str, data)


def scalar_of(dtype_str: Any, data: Buffer) -> Any:
    """The scalar of these bytes; any exception means that there is none."""
    np, dtype = importlib.import_module("numpy"), _dtype(dtype_str)
    if dtype.itemsize != len(data):
        raise CorruptError("a scalar's bytes do not fit its dtype")
    array = np.ndarray((), dtype, bytes(data))
    _check_items(array, data)
    return array[()]


def is_plain_dtype(text: str) -> bool:
    """Whether an array of that dtype has a plain form: numbers, text, times."""
    return _DTYPE.fullmatch(text) is not None


def _dtype(text: Any) -> Any:
    if type(text) is not str or not _DTYPE.fullmatch(text):
        raise CorruptError("not a dtype of plain numbers or text")
    dtype = importlib.import_module("numpy").dtype(text)
    if dtype.str != text:
        raise CorruptError("a dtype is not in canonical form")
    return dtype


def _data(text: Any) -> bytes:
    data = base64.b64decode(text, validate=True) if type(text) is str else b""
    if base64.b64encode(data).decode() != text:
        raise CorruptError("base64 is not in canonical form")
    return data


def _check_items(array: Any, data: Buffer) -> None:
    """Bytes that are no bool and no character would break whoever looks at them."""
    if array.dtype.kind == "b" and bytes(data).strip(b"\0\1"):
        raise CorruptError("a bool is neither 0 nor 1")
    if array.dtype.kind == "U" and data:
        np = importlib.import_module("numpy")
        if np.frombuffer(data, array.dtype.byteorder.replace("|", "=") + "u4").max() > _MAX_CODE_POINT:
            raise CorruptError("a character is beyond Unicode")
