"""What the writer and the reader of plain values share: marks, limits, tags."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from holdfast.errors import UsageError

MAX_DEPTH = 64
"""Containers within containers. Far below what either side's stack holds, far above what a state nests."""
MAX_PLAIN_BYTES = 256 * 2**20
SAFE_INT = 2**53
"""A larger integer does not stand bare: other JSON readers would round it."""

BUILTIN_TAGS = frozenset(
    [
        *("int", "float", "str", "bytes", "tuple", "dict", "set", "frozenset", "OrderedDict", "defaultdict", "Counter"),
        *("ndarray", "numpy", "tensor"),
    ]
)
TORCH_TAGS = ("torch.Size", "torch.dtype", "torch.device", "torch.Generator")
"""Tags of the encoders the trainer registers; any other encoder must choose another tag."""

FACTORIES: dict[str, Callable[[], Any]] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "list": list,
    "dict": dict,
    "set": set,
    "tuple": tuple,
}
"""What a defaultdict may make its values with."""


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


def by_type(encoders: Iterable[Encoder]) -> dict[type, Encoder]:
    """Encoders by the type they encode. Raises: UsageError."""
    return {encoder.type: encoder for encoder in _checked(encoders)}


def by_tag(encoders: Iterable[Encoder]) -> dict[str, Encoder]:
    """Encoders by the tag they decode. Raises: UsageError."""
    return {encoder.tag: encoder for encoder in _checked(encoders)}


def _checked(encoders: Iterable[Encoder]) -> list[Encoder]:
    found = [Encoder(*item) for item in encoders]
    for encoder in found:
        if not encoder.tag or encoder.tag in BUILTIN_TAGS:
            raise UsageError(f"the tag {encoder.tag!r} of {encoder.type} is reserved or empty")
    if len({e.type for e in found}) < len(found) or len({e.tag for e in found}) < len(found):
        raise UsageError("two encoders share a type or a tag")
    return found


def is_text(value: str) -> bool:
    """Whether UTF-8 has bytes for it: not so for lone surrogates."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_json_key(key: Any) -> bool:
    """Whether a dict with such keys only is a JSON object."""
    return type(key) is str and not key.startswith("!") and is_text(key)
