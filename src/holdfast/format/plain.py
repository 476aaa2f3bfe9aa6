"""Plain values as tagged JSON, exactly: what goes in comes out, type by type and bit by bit. No pickle, no exceptions.

JSON's own null, booleans, numbers, strings and arrays are None, bool, int (within 2**53), finite float, str and list. A
JSON object is a dict with string keys; one with a single key that begins with "!" is anything else, by its tag:
`{"!tuple":[1,2]}`. A dict with other keys, or with a key that begins with "!", is `{"!dict":[[key,value],…]}`.
"""

from __future__ import annotations

import base64
import math
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from holdfast.errors import CorruptError, UnsupportedValueError, UsageError
from holdfast.format import plain_numpy
from holdfast.format.checksum import Buffer

MAX_DEPTH = 100
MAX_PLAIN_BYTES = 256 * 2**20

TORCH_TAGS = ("torch.Size", "torch.dtype", "torch.device", "torch.Generator")
"""Tags the trainer's encoders write; no other encoder may use them."""

BUILTIN_TAGS = frozenset(
    ("int", "float", "str", "bytes", "tuple", "dict", "set", "frozenset", "OrderedDict", "defaultdict", "Counter")
    + ("ndarray", "numpy", "tensor")
)
FACTORIES: dict[str, Callable[[], Any]] = {f.__name__: f for f in (int, float, str, bool, list, dict, set, tuple)}
"""What a defaultdict may make its values with."""

_SAFE_INT = 2**53


@dataclass(frozen=True, slots=True)
class TensorRef:
    """Stands where a tensor stands in a value."""

    fqn: str


@dataclass(frozen=True, slots=True)
class Opaque:
    """A value whose tag nobody here decodes, kept as it is (`decode(..., keep_unknown=True)`)."""

    tag: str
    value: Any


class Encoder(NamedTuple):
    """How a type of the user's (or of torch) becomes plain and back. Exactly `type`, not its subclasses."""

    type: type
    tag: str
    to_plain: Callable[[Any], Any]
    from_plain: Callable[[Any], Any]


def encode(value: object, *, encoders: Iterable[Encoder] = (), root: str = "state") -> bytes:
    """`value` as tagged JSON. Equal values give equal bytes; the order of a dict is kept, that of a set is not.

    Raises:
        UnsupportedValueError: with the path (below `root`) of the first value that cannot be expressed.
    """
    data = msgspec.json.encode(_Writer(encoders, root).tree(value, 0))
    if len(data) > MAX_PLAIN_BYTES:
        raise UnsupportedValueError(
            f"the plain values below {root} are {len(data)} bytes, the limit is {MAX_PLAIN_BYTES}",
            hint="keep large data in tensors",
        )
    return data


def decode(data: Buffer, *, decoders: Iterable[Encoder] = (), keep_unknown: bool = False) -> Any:
    """The value `encode` was given. `decoders` are the encoders it was given, too.

    Raises:
        CorruptError: the bytes are not what `encode` writes, or name a tag without decoder.
    """
    if len(data) > MAX_PLAIN_BYTES:
        raise CorruptError(f"plain values of {len(data)} bytes pass the limit of {MAX_PLAIN_BYTES}")
    raw = bytes(data)
    try:
        tree = msgspec.json.decode(raw)
        same = msgspec.json.encode(tree) == raw
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as e:
        raise CorruptError(f"plain values are not valid JSON: {str(e)[:200]}") from None
    if not same:
        raise CorruptError("plain values are not in canonical form")
    return _Reader(decoders, keep_unknown).value(tree, 0)


# Writing -------------------------------------------------------------------------------------------------------------
class _Writer:
    """Value to JSON tree, knowing where it is."""

    def __init__(self, encoders: Iterable[Encoder], root: str) -> None:
        self.encoders = _by(encoders, lambda e: e.type)
        self.path: list[str] = [root]
        self.open: set[int] = set()

    def tree(self, value: Any, depth: int) -> Any:  # noqa: PLR0911  (one per kind of scalar)
        kind = type(value)
        if kind is str:
            return _text(value)
        if value is None or kind is bool:
            return value
        if kind is int:
            return value if -_SAFE_INT <= value <= _SAFE_INT else {"!int": hex(value)}
        if kind is float:
            return value if math.isfinite(value) else {"!float": repr(value)}
        if kind is bytes:
            return {"!bytes": base64.b64encode(value).decode()}
        if kind is TensorRef:
            return {"!tensor": _text(value.fqn)}
        return self._nested(value, kind, depth)

    def _nested(self, value: Any, kind: type, depth: int) -> Any:
        if depth >= MAX_DEPTH:
            raise self._refuse(f"nested more than {MAX_DEPTH} deep", "flatten it")
        if id(value) in self.open:
            raise self._refuse("contains itself", "break the cycle")
        self.open.add(id(value))
        try:
            encoder = self.encoders.get(kind)
            if encoder is not None:
                return {f"!{encoder.tag}": self.tree(encoder.to_plain(value), depth + 1)}
            write = _WRITERS.get(kind)
            if write is not None:
                return write(self, value, depth + 1)
            tagged = plain_numpy.to_tree(value)
        finally:
            self.open.discard(id(value))
        if tagged is None:
            name = f"{kind.__module__}.{kind.__qualname__}"
            raise self._refuse(
                f"is a {name}, which has no exact plain form",
                "convert it to plain values, wrap its owner in holdfast.per_rank, or register an encoder",
            )
        return tagged

    def items(self, values: Iterable[Any], depth: int) -> list[Any]:
        return [self.at(f"[{n}]", v, depth) for n, v in enumerate(values)]

    def pairs(self, value: dict[Any, Any], depth: int) -> list[Any]:
        return [[self.at(f".key({k!r:.80})", k, depth), self.at(f"[{k!r:.80}]", v, depth)] for k, v in value.items()]

    def mapping(self, value: dict[Any, Any], depth: int) -> Any:
        if all(type(k) is str and not k.startswith("!") and _is_text(k) for k in value):
            return {k: self.at(f"[{k!r:.80}]", v, depth) for k, v in value.items()}
        return {"!dict": self.pairs(value, depth)}

    def unordered(self, value: Iterable[Any], depth: int) -> list[Any]:
        return sorted((self.at("{…}", v, depth) for v in value), key=msgspec.json.encode)

    def factory(self, value: defaultdict[Any, Any], depth: int) -> Any:
        make = value.default_factory
        name = None if make is None else getattr(make, "__name__", "")
        if name is not None and FACTORIES.get(name) is not make:
            raise self._refuse(f"is a defaultdict of {make!r:.80}", f"use one of {', '.join(FACTORIES)}")
        return {"!defaultdict": [name, self.pairs(value, depth)]}

    def at(self, step: str, value: Any, depth: int) -> Any:
        self.path.append(step)
        tree = self.tree(value, depth)
        self.path.pop()
        return tree

    def _refuse(self, what: str, hint: str) -> UnsupportedValueError:
        return UnsupportedValueError(f"{''.join(self.path)} {what}", hint=hint)


def _opaque(writer: _Writer, value: Opaque, depth: int) -> Any:
    return {f"!{value.tag}": writer.tree(value.value, depth)}


_WRITERS: dict[type, Callable[[_Writer, Any, int], Any]] = {
    list: _Writer.items,
    dict: _Writer.mapping,
    tuple: lambda w, v, d: {"!tuple": w.items(v, d)},
    set: lambda w, v, d: {"!set": w.unordered(v, d)},
    frozenset: lambda w, v, d: {"!frozenset": w.unordered(v, d)},
    OrderedDict: lambda w, v, d: {"!OrderedDict": w.pairs(v, d)},
    Counter: lambda w, v, d: {"!Counter": w.pairs(v, d)},
    defaultdict: _Writer.factory,
    Opaque: _opaque,
}


def _is_text(value: str) -> bool:
    return value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value)


def _text(value: str) -> Any:
    """A string; one with lone surrogates, which UTF-8 has no bytes for, by its code points."""
    if _is_text(value):
        return value
    return {"!str": base64.b64encode(value.encode("utf-8", "surrogatepass")).decode()}


def _by(encoders: Iterable[Encoder], key: Callable[[Encoder], Any]) -> dict[Any, Encoder]:
    found: dict[Any, Encoder] = {}
    for item in encoders:
        encoder = Encoder(*item)
        if not encoder.tag or encoder.tag in BUILTIN_TAGS or key(encoder) in found:
            raise UsageError(f"the tag {encoder.tag!r} of {encoder.type} is reserved, empty, or registered twice")
        found[key(encoder)] = encoder
    return found


# Reading -------------------------------------------------------------------------------------------------------------
class _Reader:
    """JSON tree to value, trusting nothing."""

    def __init__(self, decoders: Iterable[Encoder], keep_unknown: bool) -> None:
        self.decoders = _by(decoders, lambda e: e.tag)
        self.keep_unknown = keep_unknown

    def value(self, tree: Any, depth: int) -> Any:
        kind = type(tree)
        if kind is not list and kind is not dict:
            return _scalar(tree)
        if depth > MAX_DEPTH:
            raise CorruptError(f"plain values are nested more than {MAX_DEPTH} deep")
        if kind is list:
            return [self.value(item, depth + 1) for item in tree]
        if len(tree) == 1:
            ((key, body),) = tree.items()
            if key.startswith("!"):
                return self._tagged(key[1:], body, depth + 1)
        if any(k.startswith("!") for k in tree):
            raise CorruptError("a tag stands among other keys")
        return {k: self.value(v, depth + 1) for k, v in tree.items()}

    def _tagged(self, tag: str, body: Any, depth: int) -> Any:
        read = _READERS.get(tag)
        try:
            if read is not None:
                return read(self, body, depth)
            decoder = self.decoders.get(tag)
            if decoder is not None:
                return decoder.from_plain(self.value(body, depth))
        except CorruptError:
            raise
        except Exception as e:  # a hostile body may fail anywhere, a user's decoder in any way
            raise CorruptError(f"a plain value tagged {tag[:40]!r} cannot be read: {str(e)[:200]}") from None
        if self.keep_unknown and tag:
            return Opaque(tag, self.value(body, depth))
        raise CorruptError(
            f"a plain value has the tag {tag[:40]!r}, which nothing here decodes",
            hint="register the encoder it was saved with",
        )

    def items(self, body: Any, depth: int) -> list[Any]:
        return [self.value(item, depth) for item in _a(list, body)]

    def pairs(self, body: Any, depth: int) -> list[tuple[Hashable, Any]]:
        found = [(self.value(k, depth), self.value(v, depth)) for k, v in _a(list, body)]
        if len(dict(found)) != len(found):
            raise CorruptError("a mapping has a key twice")
        return found

    def unordered(self, body: Any, depth: int) -> frozenset[Any]:
        encoded = [msgspec.json.encode(item) for item in _a(list, body)]
        found = frozenset(self.items(body, depth))
        if encoded != sorted(encoded) or len(found) != len(body):
            raise CorruptError("a set is out of order or has an item twice")
        return found

    def factory(self, body: Any, depth: int) -> defaultdict[Any, Any]:
        name, pairs = _a(list, body)
        return defaultdict(None if name is None else FACTORIES[name], self.pairs(pairs, depth))

    def mapping(self, body: Any, depth: int) -> dict[Any, Any]:
        found = dict(self.pairs(body, depth))
        if all(type(k) is str and not k.startswith("!") and _is_text(k) for k in found):
            raise CorruptError("a plain dict is spelt as pairs")
        return found


def _scalar(tree: Any) -> Any:
    if type(tree) is int and not -_SAFE_INT <= tree <= _SAFE_INT:
        raise CorruptError("a number is too large to stand bare")
    return tree


def _a(kind: type, body: Any) -> Any:
    if type(body) is not kind:
        raise CorruptError(f"expected a {kind.__name__}, found a {type(body).__name__}")
    return body


def _int(body: str) -> int:
    value = int(_a(str, body), 16)
    if hex(value) != body or -_SAFE_INT <= value <= _SAFE_INT:
        raise CorruptError("a large integer is not in canonical form")
    return value


def _float(body: str) -> float:
    if body not in ("nan", "inf", "-inf"):
        raise CorruptError("a tagged float is neither nan nor infinite")
    return float(body)


def _base64(body: str) -> bytes:
    data = base64.b64decode(_a(str, body), validate=True)
    if base64.b64encode(data).decode() != body:
        raise CorruptError("base64 is not in canonical form")
    return data


def _str(body: str) -> str:
    value = _base64(body).decode("utf-8", "surrogatepass")
    if _is_text(value):
        raise CorruptError("a string is tagged without need")
    return value


def _tensor(reader: _Reader, body: Any, depth: int) -> TensorRef:
    return TensorRef(_a(str, reader.value(body, depth)))


_READERS: dict[str, Callable[[_Reader, Any, int], Any]] = {
    "int": lambda r, b, d: _int(b),
    "float": lambda r, b, d: _float(b),
    "str": lambda r, b, d: _str(b),
    "bytes": lambda r, b, d: _base64(b),
    "tensor": _tensor,
    "tuple": lambda r, b, d: tuple(r.items(b, d)),
    "dict": _Reader.mapping,
    "set": lambda r, b, d: set(r.unordered(b, d)),
    "frozenset": _Reader.unordered,
    "OrderedDict": lambda r, b, d: OrderedDict(r.pairs(b, d)),
    "Counter": lambda r, b, d: Counter(dict(r.pairs(b, d))),
    "defaultdict": _Reader.factory,
    "ndarray": lambda r, b, d: plain_numpy.array_from(b),
    "numpy": lambda r, b, d: plain_numpy.scalar_from(b),
}
