"""numpy's arrays, scalars and dtypes in a pickle. Those of Python objects and of records are refused."""

from __future__ import annotations

import sys
from typing import Any

from holdfast.errors import CorruptError, UnsupportedValueError
from holdfast.format.pickled.names import SAVE_ANEW, Meaning, Unfinished
from holdfast.format.plain.arrays import array_of, is_plain_dtype, scalar_of

_ORDERS = {"<": "<", ">": ">", "|": "|", "=": "<" if sys.byteorder == "little" else ">"}
_TIMES = ("M8", "m8")


class Dtype(Unfinished):
    """A numpy dtype: its text is known once it is built."""

    __slots__ = ("kind", "text")

    def __init__(self, kind: Any) -> None:
        super().__init__()
        if type(kind) is not str:
            raise CorruptError("a dtype of numpy has no name")
        self.kind, self.text = kind, ""

    def build(self, state: Any) -> Dtype:
        """(version, byte order, subarray, names, fields, size, alignment, flags), and the unit of times."""
        _, order, subarray, names, fields, *rest = state
        text = _ORDERS[order] + self.kind
        if self.kind in _TIMES and len(rest) > 3:
            text += _unit(rest[3])
        if (subarray, names, fields) != (None, None, None) or not is_plain_dtype(text):
            raise UnsupportedValueError(f"numpy's dtype {self.kind[:40]} has no plain form", hint=SAVE_ANEW)
        self.text = text
        return self


def _unit(metadata: Any) -> str:
    (_, (unit, count, divisor, events)) = metadata
    unit = unit.decode() if type(unit) is bytes else unit
    if (divisor, events) != (1, 1) or type(count) is not int:
        raise CorruptError("a dtype of times has an odd unit")
    return "" if unit == "generic" else f"[{'' if count == 1 else count}{unit}]"


class UnfilledArray(Unfinished):
    """What `_reconstruct` makes: BUILD puts an array in its place."""

    __slots__ = ()

    def build(self, state: Any) -> Any:
        """(version, shape, dtype, whether in Fortran's order, bytes)."""
        _, shape, dtype, in_fortran_order, data = state
        if type(data) is not bytes:
            raise UnsupportedValueError("an array of Python objects has no plain form", hint=SAVE_ANEW)
        return array_of(_text(dtype), _shape(shape), "F" if in_fortran_order else "C", data)


def _reconstruct(kind: Any, shape: Any, letter: Any) -> UnfilledArray:
    if type(kind) is not Meaning or kind.value != "ndarray":
        raise UnsupportedValueError("a subclass of numpy's array has no plain form", hint=SAVE_ANEW)
    return UnfilledArray()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> Any:
    """`axes` say how an array of order K, whose bytes are in row order, lies."""
    if type(data) not in (bytes, bytearray) or order not in ("C", "F", "K"):
        raise CorruptError("an array's bytes are none")
    array = array_of(_text(dtype), _shape(shape), "F" if order == "F" else "C", data)
    return array.transpose(tuple(axes)) if order == "K" and axes is not None else array


def _scalar(dtype: Any, data: Any) -> Any:
    if type(data) is not bytes:
        raise UnsupportedValueError("a scalar of a Python object has no plain form", hint=SAVE_ANEW)
    return scalar_of(_text(dtype), data)


def _text(dtype: Any) -> str:
    if type(dtype) is not Dtype or not dtype.text:
        raise CorruptError("an array has no dtype")
    return dtype.text


def _shape(shape: Any) -> tuple[Any, ...]:
    if type(shape) is not tuple:
        raise CorruptError("an array has no shape")
    return shape


def _dtype(kind: Any, align: Any = False, copy: Any = False) -> Dtype:
    return Dtype(kind)


NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): Meaning("numpy.dtype", _dtype),
    ("numpy", "ndarray"): Meaning("numpy.ndarray", value="ndarray"),
}
for _core in ("numpy.core", "numpy._core"):  # before numpy 2, and since
    NAMES[f"{_core}.multiarray", "_reconstruct"] = Meaning(f"{_core}.multiarray._reconstruct", _reconstruct)
    NAMES[f"{_core}.multiarray", "scalar"] = Meaning(f"{_core}.multiarray.scalar", _scalar)
    NAMES[f"{_core}.numeric", "_frombuffer"] = Meaning(f"{_core}.numeric._frombuffer", _from_buffer)
