"""Types that users taught Holdfast: found by type when saving, by name when loading.

The name stands in the checkpoint, not the Python path, and nothing is imported by name: what a load calls, this process
has registered.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from holdfast.errors import CorruptError, StructureError, UsageError
from holdfast.format.plain import Encoder, Opaque
from holdfast.trainer.values import ENCODERS

PREFIX = "user:"
"""Begins the tag of every registered type, so that no tag of Holdfast's own can ever be one."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}")
_OURS: tuple[type, ...] = (
    *(type(None), bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, torch.Tensor),
    *(torch.nn.Parameter, torch.nn.Module, torch.optim.Optimizer, *(e.type for e in ENCODERS)),
)


@dataclass(frozen=True, slots=True)
class Taught:
    """A registered type. Without `encode` it is a tensor subclass that torch itself can take apart."""

    kind: type
    name: str
    encode: Callable[[Any], Any] | None
    decode: Callable[[Any], Any] | None

    @property
    def tag(self) -> str:
        return PREFIX + self.name


_by_type: dict[type, Taught] = {}
_by_name: dict[str, Taught] = {}


def register(
    kind: type,
    *,
    name: str,
    encode: Callable[[Any], Any] | None = None,
    decode: Callable[[Any], Any] | None = None,
) -> None:
    """Teach Holdfast a type (exactly that one, not its subclasses). Do it before `load` and `save`, on all ranks.

    Args:
        name: stands in the checkpoint for the type, for ever: the class may move and be renamed, this may not change.
        encode: gives what a value consists of: plain values, tensors, containers and other registered types. Of a
            tensor subclass, a dict by name.
        decode: makes a value of what `encode` gave. Neither is needed for a tensor subclass with `__tensor_flatten__`.

    Raises: UsageError: the type has a form of its own, or the name belongs to another type.
    """
    taught = _checked(Taught(kind, name, encode, decode))
    before = _by_name.get(name)
    if before is not None and before.kind is not kind:
        if (before.kind.__module__, before.kind.__qualname__) != (kind.__module__, kind.__qualname__):
            raise UsageError(f"{name!r} is the registered name of {before.kind!r} already", hint="choose another name")
        del _by_type[before.kind]  # the same class, defined again
    other = _by_type.get(kind)
    if other is not None and other.name != name:
        raise UsageError(f"{kind!r} is registered already, as {other.name!r}", hint="keep that name")
    _by_type[kind] = _by_name[name] = taught


def _checked(taught: Taught) -> Taught:
    kind = taught.kind
    if not isinstance(kind, type):
        raise UsageError(f"{kind!r:.80} is no type", hint="holdfast.register(MyType, name=..., encode=..., decode=...)")
    if kind in _OURS or issubclass(kind, (torch.nn.Module, torch.optim.Optimizer)):
        raise UsageError(f"Holdfast saves {kind!r} itself", hint="register a type of your own")
    if type(taught.name) is not str or not _NAME.fullmatch(taught.name):
        raise UsageError(
            f"{taught.name!r:.80} cannot be the name of a type", hint="letters, digits and _ . -, at most 128"
        )
    given = [callable(taught.encode), callable(taught.decode)]
    if not all(given) and (any(given) or not hasattr(kind, "__tensor_flatten__")):
        raise UsageError(f"{kind!r} needs both encode= and decode=", hint="functions of one argument")
    return taught


def of(kind: type) -> Taught | None:
    """What was registered for exactly this type."""
    return _by_type.get(kind)


def named(name: str) -> Taught | None:
    """What was registered under this name."""
    return _by_name.get(name)


def by_tag(value: Opaque) -> Taught:
    """What makes a saved value of a registered type.

    Raises: StructureError, saying what to register; CorruptError: it is no such value.
    """
    if not value.tag.startswith(PREFIX):
        raise CorruptError(
            f"a plain value has the tag {value.tag[:40]!r}, which nothing here decodes",
            hint="a newer Holdfast wrote it: load it with that version",
        )
    name = value.tag.removeprefix(PREFIX)
    taught = _by_name.get(name)
    if taught is None or taught.decode is None:
        raise StructureError(
            f"the checkpoint holds a value of the registered type {name[:128]!r}, which this process does not know",
            hint=f"call holdfast.register(ITS_TYPE, name={name[:128]!r}, encode=..., decode=...) before load",
        )
    return taught


def plain_encoders() -> tuple[Encoder, ...]:
    """For values that hold no tensors: torch's own and all registered types."""
    taught = (Encoder(t.kind, t.tag, t.encode, t.decode) for t in _by_type.values() if t.encode and t.decode)
    return (*ENCODERS, *taught)
