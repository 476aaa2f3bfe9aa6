"""Tagged JSON to plain values, trusting nothing.

The JSON must be exactly what the writer writes, so everything is read as strictly as it is written; whatever a hostile
body raises on the way becomes CorruptError.
"""

from __future__ import annotations

import base64
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Iterable
from typing import Any, cast

import msgspec

from holdfast.errors import CorruptError
from holdfast.format.checksum import Buffer
from holdfast.format.plain import arrays
from holdfast.format.plain.values import (
    FACTORIES,
    MAX_DEPTH,
    MAX_PLAIN_BYTES,
    SAFE_INT,
    Encoder,
    Opaque,
    TensorRef,
    by_tag,
    is_json_key,
    is_text,
)


def decode(data: Buffer, *, decoders: Iterable[Encoder] = (), keep_unknown: bool = False) -> Any:
    """The value `encode` was given. `decoders` are the encoders it was given, too.

    With `keep_unknown`, a tag without decoder is kept as `Opaque`, which `encode` writes back as it was.

    Raises:
        CorruptError: the bytes are not what `encode` writes, or name a tag without decoder.
    """
    if len(data) > MAX_PLAIN_BYTES:
        raise CorruptError(f"plain values of {len(data)} bytes pass the limit of {MAX_PLAIN_BYTES}")
    raw = bytes(data)
    reader = _Reader(decoders, keep_unknown)
    try:
        tree = msgspec.json.decode(raw)
        if msgspec.json.encode(tree) == raw:
            return reader.value(tree, 0)
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as e:
        raise CorruptError(f"plain values cannot be read: {str(e)[:200]}") from None
    raise CorruptError("plain values are not in canonical form")


class _Reader:
    """JSON tree to value."""

    def __init__(self, decoders: Iterable[Encoder], keep_unknown: bool) -> None:
        self.decoders = by_tag(decoders)
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
        if any(key.startswith("!") for key in tree):
            raise CorruptError("a tag stands among other keys")
        return {key: self.value(item, depth + 1) for key, item in tree.items()}

    def _tagged(self, tag: str, body: Any, depth: int) -> Any:
        read, decoder = _READERS.get(tag), self.decoders.get(tag)
        try:
            if read is not None:
                return read(self, body, depth)
            if decoder is not None:
                return decoder.from_plain(self.value(body, depth))
        except CorruptError:
            raise
        except Exception as e:  # a hostile body may fail anywhere, a decoder of the user's in any way
            raise CorruptError(f"a plain value tagged {tag[:40]!r} cannot be read: {str(e)[:200]}") from None
        if self.keep_unknown and tag:
            return Opaque(tag, self.value(body, depth))
        raise CorruptError(
            f"a plain value has the tag {tag[:40]!r}, which nothing here decodes",
            hint="a newer Holdfast wrote it: load it with that version",
        )

    def items(self, body: Any, depth: int) -> list[Any]:
        return [self.value(item, depth) for item in _a(list, body)]

    def pairs(self, body: Any, depth: int) -> list[tuple[Hashable, Any]]:
        found = [(self.value(k, depth), self.value(v, depth)) for k, v in _a(list, body)]
        if len(dict(found)) != len(found):
            raise CorruptError("a mapping has a key twice")
        return found

    def mapping(self, body: Any, depth: int) -> dict[Any, Any]:
        found = dict(self.pairs(body, depth))
        if all(map(is_json_key, found)):
            raise CorruptError("a dict that JSON has a form for is spelt as pairs")
        return found

    def unordered(self, body: Any, depth: int) -> frozenset[Any]:
        encoded = [msgspec.json.encode(item) for item in _a(list, body)]
        found = frozenset(self.items(body, depth))
        if encoded != sorted(encoded) or len(found) != len(encoded):
            raise CorruptError("a set is out of order or has a member twice")
        return found

    def factory(self, body: Any, depth: int) -> defaultdict[Any, Any]:
        name, pairs = _a(list, body)
        return defaultdict(None if name is None else FACTORIES[name], self.pairs(pairs, depth))

    def tensor(self, body: Any, depth: int) -> TensorRef:
        return TensorRef(_a(str, self.value(body, depth)))


def _scalar(tree: Any) -> Any:
    if type(tree) is int and not -SAFE_INT <= tree <= SAFE_INT:
        raise CorruptError("an integer is too large to stand bare")
    return tree


def _a(kind: type, body: Any) -> Any:
    if type(body) is not kind:
        raise CorruptError(f"expected a {kind.__name__}, found a {type(body).__name__}")
    return body


def _int(body: Any) -> int:
    value = int(_a(str, body), 16)
    if hex(value) != body or -SAFE_INT <= value <= SAFE_INT:
        raise CorruptError("a large integer is not in canonical form")
    return value


def _float(body: Any) -> float:
    if body not in ("nan", "inf", "-inf"):
        raise CorruptError("a tagged float is neither nan nor infinite")
    return float(body)


def _str(body: Any) -> str:
    value = _bytes(body).decode("utf-8", "surrogatepass")
    if is_text(value):
        raise CorruptError("a string is tagged without need")
    return value


def _bytes(body: Any) -> bytes:
    data = base64.b64decode(_a(str, body), validate=True)
    if base64.b64encode(data).decode() != body:
        raise CorruptError("base64 is not in canonical form")
    return data


_READERS: dict[str, Callable[[_Reader, Any, int], Any]] = {
    "int": lambda r, b, d: _int(b),
    "float": lambda r, b, d: _float(b),
    "str": lambda r, b, d: _str(b),
    "bytes": lambda r, b, d: _bytes(b),
    "tensor": _Reader.tensor,
    "tuple": lambda r, b, d: tuple(r.items(b, d)),
    "dict": _Reader.mapping,
    "set": lambda r, b, d: set(r.unordered(b, d)),
    "frozenset": _Reader.unordered,
    "OrderedDict": lambda r, b, d: OrderedDict(r.pairs(b, d)),
    "Counter": lambda r, b, d: Counter(cast("dict[Any, int]", dict(r.pairs(b, d)))),
    "defaultdict": _Reader.factory,
    "ndarray": lambda r, b, d: arrays.array_from(b),
    "numpy": lambda r, b, d: arrays.scalar_from(b),
}
