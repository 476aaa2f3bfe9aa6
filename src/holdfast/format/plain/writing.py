"""Plain values to tagged JSON."""

from __future__ import annotations

import base64
import math
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import starmap
from typing import Any

import msgspec

from holdfast.errors import HoldfastError, UnsupportedValueError
from holdfast.format.plain import arrays
from holdfast.format.plain.values import (
    FACTORIES,
    MAX_DEPTH,
    MAX_PLAIN_BYTES,
    SAFE_INT,
    Encoder,
    Opaque,
    TensorRef,
    by_type,
    is_json_key,
    is_text,
)


def encode(value: object, *, encoders: Iterable[Encoder] = (), root: str = "state") -> bytes:
    """`value` as tagged JSON. The order of a dict is kept; that of a set has no influence on the bytes.

    Raises:
        UnsupportedValueError: with the path (below `root`) of the first value that cannot be expressed.
    """
    writer = _Writer(encoders, root)
    try:
        data = msgspec.json.encode(writer.tree(value, 0))
    except RecursionError:
        raise writer.refuse("leaves no stack to follow it", "save it from a shallower call, or flatten it") from None
    if len(data) > MAX_PLAIN_BYTES:
        raise UnsupportedValueError(
            f"the plain values below {root} are {len(data)} bytes, the limit is {MAX_PLAIN_BYTES}",
            hint="keep large data in tensors",
        )
    return data


class _Writer:
    """Value to JSON tree. `path` holds what leads to the current value; it becomes text only for an error."""

    def __init__(self, encoders: Iterable[Encoder], root: str) -> None:
        self.encoders = by_type(encoders)
        self.root = root
        self.path: list[tuple[str, Any]] = []
        self.open: set[int] = set()

    def tree(self, value: Any, depth: int) -> Any:  # noqa: PLR0911  (a line for each kind of scalar)
        kind = type(value)
        if value is None or kind is bool:
            return value
        if kind is str:
            return _text(value)
        if kind is int:
            return value if -SAFE_INT <= value <= SAFE_INT else {"!int": hex(value)}
        if kind is float:
            return value if math.isfinite(value) else {"!float": repr(value)}
        if kind is bytes:
            return {"!bytes": base64.b64encode(value).decode()}
        if kind is TensorRef:
            return {"!tensor": _text(value.fqn)}
        return self._nested(value, kind, depth)

    def _nested(self, value: Any, kind: type, depth: int) -> Any:
        if depth >= MAX_DEPTH:
            raise self.refuse(f"is nested more than {MAX_DEPTH} deep", "flatten it")
        if id(value) in self.open:
            raise self.refuse("contains itself", "break the cycle")
        self.open.add(id(value))
        try:
            encoder, write = self.encoders.get(kind), _WRITERS.get(kind)
            if encoder is not None:
                return {f"!{encoder.tag}": self.tree(self._to_plain(encoder, value), depth + 1)}
            if write is not None:
                return write(self, value, depth + 1)
            tagged = arrays.to_tree(value)
        finally:
            self.open.discard(id(value))
        if tagged is None:
            raise self.refuse(
                f"is a {kind.__module__}.{kind.__qualname__}, which has no exact plain form",
                "convert it to plain values or tensors, give an object with state_dict and load_state_dict, or teach "
                "Holdfast the type: holdfast.register(TYPE, name=..., encode=..., decode=...)",
            )
        return tagged

    def _to_plain(self, encoder: Encoder, value: Any) -> Any:
        try:
            return encoder.to_plain(value)
        except HoldfastError:
            raise
        except Exception as e:  # the user's code
            raise self.refuse(f"could not be encoded as {encoder.tag}: {e!r:.200}", "mend its encoder") from e

    def items(self, values: Iterable[Any], depth: int) -> list[Any]:
        items = list(values)
        if _is_bare(items):
            return items
        return [self._at("item", n, v, depth) for n, v in enumerate(items)]

    def pairs(self, value: Mapping[Any, Any], depth: int) -> list[Any]:
        return [[self._at("key", k, k, depth), self._at("item", k, v, depth)] for k, v in value.items()]

    def mapping(self, value: dict[Any, Any], depth: int) -> Any:
        if all(map(is_json_key, value)):
            return {k: self._at("item", k, v, depth) for k, v in value.items()}
        return {"!dict": self.pairs(value, depth)}

    def unordered(self, value: Iterable[Any], depth: int) -> list[Any]:
        return sorted((self._at("member", v, v, depth) for v in value), key=msgspec.json.encode)

    def factory(self, value: defaultdict[Any, Any], depth: int) -> Any:
        make = value.default_factory
        name = None if make is None else getattr(make, "__name__", "")
        if name is not None and FACTORIES.get(name) is not make:
            raise self.refuse(f"is a defaultdict of {make!r:.80}", f"use one of {', '.join(FACTORIES)}")
        return {"!defaultdict": [name, self.pairs(value, depth)]}

    def _at(self, how: str, step: Any, value: Any, depth: int) -> Any:
        self.path.append((how, step))
        tree = self.tree(value, depth)
        self.path.pop()
        return tree

    def refuse(self, what: str, hint: str) -> UnsupportedValueError:
        steps = "".join(starmap(_step, self.path))
        return UnsupportedValueError(f"{self.root}{steps} {what}", hint=hint)


_WRITERS: dict[type, Callable[[_Writer, Any, int], Any]] = {
    list: _Writer.items,
    dict: _Writer.mapping,
    tuple: lambda w, v, d: {"!tuple": w.items(v, d)},
    set: lambda w, v, d: {"!set": w.unordered(v, d)},
    frozenset: lambda w, v, d: {"!frozenset": w.unordered(v, d)},
    OrderedDict: lambda w, v, d: {"!OrderedDict": w.pairs(v, d)},
    Counter: lambda w, v, d: {"!Counter": w.pairs(v, d)},
    defaultdict: _Writer.factory,
    Opaque: lambda w, v, d: {f"!{v.tag}": w._at("content", v.tag, v.value, d)},
}


def _is_bare(items: list[Any]) -> bool:
    """Whether all stand in JSON as they are. Seen in C, for lists are long: names of parameters, a shuffled epoch."""
    kinds = set(map(type, items))
    if kinds == {str}:
        return all(map(str.isascii, items))
    if kinds == {float}:
        return all(map(math.isfinite, items))
    return kinds == {int} and min(items) >= -SAFE_INT and max(items) <= SAFE_INT


def _step(how: str, step: Any) -> str:
    if how == "content":
        return f" ({step})"
    return f"[{step!r:.80}]" if how == "item" else f".{how}({step!r:.80})"


def _text(value: str) -> Any:
    """A string; one with lone surrogates by what its UTF-8 would be."""
    if is_text(value):
        return value
    return {"!str": base64.b64encode(value.encode("utf-8", "surrogatepass")).decode()}
