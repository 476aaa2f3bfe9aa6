"""The bytes of a tensor as numbers numpy can compute with, without torch. Widening is exact: no value changes.

numpy lacks bfloat16 and the 8-bit floats. bfloat16 is the upper half of a float32; an 8-bit float is looked up in a
table of its 256 values, computed once from the definition of its bits.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_NATIVE = {
    "bool": "u1",
    "uint8": "u1",
    "int8": "i1",
    "int16": "<i2",
    "uint16": "<u2",
    "float16": "<f2",
    "int32": "<i4",
    "uint32": "<u4",
    "float32": "<f4",
    "int64": "<i8",
    "uint64": "<u8",
    "float64": "<f8",
    "complex64": "<c8",
    "complex128": "<c16",
}


class _Float8(NamedTuple):
    """How 8 bits are read: sign (if any), exponent, mantissa; which of them are no numbers."""

    mantissa_bits: int
    bias: int
    signed: bool = True
    infinite: bool = False
    """The largest exponent means infinity or NaN, as in IEEE 754."""
    nans: tuple[int, ...] = ()


_FLOAT8 = {
    "float8_e4m3fn": _Float8(3, 7, nans=(0x7F, 0xFF)),
    "float8_e5m2": _Float8(2, 15, infinite=True),
    "float8_e4m3fnuz": _Float8(3, 8, nans=(0x80,)),
    "float8_e5m2fnuz": _Float8(2, 16, nans=(0x80,)),
    "float8_e8m0fnu": _Float8(0, 127, signed=False, nans=(0xFF,)),
}


def has_numbers(dtype: str) -> bool:
    """Whether `numbers` can read it; the elements of others (packed, or of a newer torch) are only bytes."""
    return dtype in _NATIVE or dtype in _FLOAT8 or dtype == "bfloat16"


def numbers(raw: Array, dtype: str) -> Array:
    """The elements that `raw`, contiguous bytes, holds; bool as 0 and 1, small floats as float32.

    Raises: KeyError for a dtype without numbers.
    """
    raw = np.ascontiguousarray(raw).reshape(-1)
    if dtype == "bfloat16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if dtype in _FLOAT8:
        table: Array = _table(dtype)[raw]
        return table
    return raw.view(_NATIVE[dtype])


@lru_cache(None)
def _table(dtype: str) -> Array:
    form = _FLOAT8[dtype]
    return np.array([_value(bits, form) for bits in range(256)], np.float32)


def _value(bits: int, form: _Float8) -> float:
    if bits in form.nans:
        return math.nan
    mantissa = bits & ((1 << form.mantissa_bits) - 1)
    exponent = (bits & (0x7F if form.signed else 0xFF)) >> form.mantissa_bits
    sign = -1.0 if form.signed and bits & 0x80 else 1.0
    if form.infinite and exponent == 0x7F >> form.mantissa_bits:
        return math.nan if mantissa else sign * math.inf
    if exponent == 0 and form.mantissa_bits:  # no leading one: towards zero the steps stay equal
        return sign * math.ldexp(mantissa, 1 - form.bias - form.mantissa_bits)
    return sign * math.ldexp((1 << form.mantissa_bits) + mantissa, exponent - form.bias - form.mantissa_bits)
