"""Writes the pickle of a torch.save file, so that `torch.load(weights_only=True)` reads it.

Protocol 2, which torch.save writes too, and of it only what that reader knows: no frozenset, no defaultdict, nothing of
numpy, no integer of more than 255 bytes.
"""

from __future__ import annotations

import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from holdfast.errors import UnsupportedValueError
from holdfast.format.pickled.meanings import ITEM_BYTES, STORAGES, TensorView
from holdfast.format.plain import Opaque, TensorRef

_LONGEST_INT_BYTES = 255
_SHOWN = 20
TORCH_SAVES = frozenset(ITEM_BYTES) - {f"{kind}{n}" for kind in ("int", "uint") for n in range(1, 8)}
"""Dtypes whose tensors torch.save takes: all but integers of less than a byte."""


def write(value: Any, tensors: Mapping[str, TensorView]) -> bytes:
    """The pickle of a plain value, whose `TensorRef`s are those tensors.

    Raises: UnsupportedValueError naming everything that has no place in such a file.
    """
    writer = _Writer(tensors)
    data = writer.pickle(value)
    problems = writer.problems
    if problems:
        more = f", and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise UnsupportedValueError(
            f"torch.load(weights_only=True) would not read {', '.join(problems[:_SHOWN])}{more}",
            hint="leave them out: --without NAME",
        )
    return data


class _Writer:
    """`problems` are names of values that cannot be written, each with what it is; None stands in their place."""

    def __init__(self, tensors: Mapping[str, TensorView]) -> None:
        self.problems: list[str] = []
        self._tensors = tensors
        self._parts: list[bytes] = []
        self._path: list[str] = []

    def pickle(self, value: Any) -> bytes:
        self._add(b"\x80\x02")
        self.value(value)
        self._add(b".")
        return b"".join(self._parts)

    def _add(self, data: bytes) -> None:
        self._parts.append(data)

    def value(self, value: Any) -> None:
        kind = type(value)
        write = _WRITERS.get(kind)
        if kind is Opaque:
            write = _OPAQUE.get(value.tag)
        if write is None:
            self._refuse(value.tag if kind is Opaque else f"{kind.__module__}.{kind.__qualname__}")
        else:
            write(self, value)

    def _refuse(self, what: str) -> None:
        self.problems.append(f"{'.'.join(self._path) or 'the whole'} ({what.removeprefix('builtins.')})")
        self._add(b"N")

    def at(self, step: Any, value: Any) -> None:
        """A value in a container."""
        self._path.append(str(step))
        self.value(value)
        self._path.pop()

    # Leaves ----------------------------------------------------------------------------------------------------------
    def put_bool(self, value: bool) -> None:
        self._add(b"\x88" if value else b"\x89")

    def put_int(self, value: int) -> None:
        if 0 <= value < 2**8:
            self._add(b"K" + bytes([value]))
        elif 0 <= value < 2**16:
            self._add(b"M" + struct.pack("<H", value))
        elif -(2**31) <= value < 2**31:
            self._add(b"J" + struct.pack("<i", value))
        else:
            n = value.bit_length() // 8 + 1
            if n > _LONGEST_INT_BYTES:
                return self._refuse(f"an int of {n} bytes")
            self._add(b"\x8a" + bytes([n]) + value.to_bytes(n, "little", signed=True))

    def put_float(self, value: float) -> None:
        self._add(b"G" + struct.pack(">d", value))

    def put_text(self, value: str) -> None:
        data = value.encode("utf-8", "surrogatepass")
        self._add(b"X" + struct.pack("<I", len(data)) + data)

    def put_bytes(self, value: bytes) -> None:
        self.put_name("_codecs", "encode")
        self.put_text(value.decode("latin-1"))
        self.put_text("latin1")
        self._add(b"\x86R")

    def put_name(self, module: str, name: str) -> None:
        self._add(f"c{module}\n{name}\n".encode())

    # Containers ------------------------------------------------------------------------------------------------------
    def put_tuple(self, value: tuple[Any, ...]) -> None:
        if not value:
            self._add(b")")
            return
        self._add(b"(")
        self._items(value)
        self._add(b"t")

    def put_list(self, value: list[Any]) -> None:
        self._add(b"]")
        if value:
            self._add(b"(")
            self._items(value)
            self._add(b"e")

    def put_dict(self, value: dict[Any, Any]) -> None:
        self._add(b"}")
        self._pairs(value)

    def put_ordered(self, value: OrderedDict[Any, Any]) -> None:
        self.put_name("collections", "OrderedDict")
        self._add(b")R")
        self._pairs(value)

    def put_counter(self, value: Counter[Any]) -> None:
        self.put_name("collections", "Counter")
        self.put_dict(dict(value))
        self._add(b"\x85R")

    def put_set(self, value: set[Any]) -> None:
        self.put_name("__builtin__", "set")
        self.put_list(list(value))
        self._add(b"\x85R")

    def _items(self, values: Iterable[Any]) -> None:
        for n, item in enumerate(values):
            self.at(n, item)

    def _pairs(self, value: Mapping[Any, Any]) -> None:
        if value:
            self._add(b"(")
            for key, item in value.items():
                self.value(key)
                self.at(key, item)
            self._add(b"u")

    # torch's own -----------------------------------------------------------------------------------------------------
    def put_size(self, value: Opaque) -> None:
        self.put_name("torch", "Size")
        self.put_tuple(tuple(value.value))
        self._add(b"\x85R")

    def put_dtype(self, value: Opaque) -> None:
        if value.value not in ITEM_BYTES:
            return self._refuse(f"torch.{value.value}")
        self.put_name("torch", value.value)

    def put_device(self, value: Opaque) -> None:
        kind, _, index = value.value.partition(":")
        self.put_name("torch", "device")
        self.put_tuple((kind, int(index)) if index.isdecimal() else (kind,))
        self._add(b"R")

    def put_tensor(self, value: TensorRef) -> None:
        view = self._tensors[value.fqn]
        typed = view.dtype in STORAGES
        if view.dtype not in TORCH_SAVES:
            return self._refuse(f"a tensor of {view.dtype}")
        self.put_name("torch._utils", "_rebuild_tensor_v2" if typed else "_rebuild_tensor_v3")
        self._add(b"((")
        self.put_text("storage")
        self.put_name(*(("torch", STORAGES[view.dtype]) if typed else ("torch.storage", "UntypedStorage")))
        self.put_text(view.storage.key)
        self.put_text("cpu")
        self.put_int(view.storage.n_elements)
        self._add(b"tQ")
        self.put_int(view.offset)
        self.put_tuple(view.shape)
        self.put_tuple(view.strides)
        self._add(b"\x89")  # requires no gradient
        self.put_ordered(OrderedDict())  # of hooks
        if not typed:
            self.put_name("torch", view.dtype)
        self._add(b"tR")


_Write = Callable[[_Writer, Any], None]
_WRITERS: dict[type, _Write] = {
    type(None): lambda w, v: w._add(b"N"),
    bool: _Writer.put_bool,
    int: _Writer.put_int,
    float: _Writer.put_float,
    str: _Writer.put_text,
    bytes: _Writer.put_bytes,
    tuple: _Writer.put_tuple,
    list: _Writer.put_list,
    dict: _Writer.put_dict,
    OrderedDict: _Writer.put_ordered,
    Counter: _Writer.put_counter,
    set: _Writer.put_set,
    TensorRef: _Writer.put_tensor,
}
_OPAQUE: dict[str, _Write] = {
    "torch.Size": _Writer.put_size,
    "torch.dtype": _Writer.put_dtype,
    "torch.device": _Writer.put_device,
}
