"""How much a value is once it is written out: what is shared counts each time, however it came to be shared.

A thing is a container, a number, or sixteen bytes of text, bytes or an array.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Collection
from typing import Any

from holdfast.errors import CorruptError
from holdfast.format.pickled.names import Unfinished
from holdfast.format.plain import MAX_DEPTH, Opaque

DICTS: frozenset[type] = frozenset({dict, OrderedDict, defaultdict, Counter})
_LISTS: frozenset[type] = frozenset({list, tuple, set, frozenset})
_SMALL: frozenset[type] = frozenset({type(None), bool, float})
_LONG: frozenset[type] = frozenset({str, bytes, bytearray})
_THING_BYTES = 16
_LITTLE = 8
"""A container of so few leaves is looked into again sooner than remembered."""


def check_size(value: Any, *, most: int) -> None:
    """Refuse a value that is more than so many things, nested too deep, or part of itself.

    Work is in proportion to the things there are, not to how often they are reached. Raises: CorruptError.
    """
    _Measure(most).size(value, 0)


class _Measure:
    """`_known` has the size and the height of every container that is done, `_open` those above the current one."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: dict[int, tuple[int, int]] = {}
        self._open: set[int] = set()

    def size(self, value: Any, depth: int) -> tuple[int, int]:
        """(things, containers on the longest way down)."""
        known = self._known.get(id(value))
        if known is None:
            inner = _inner(value)
            if inner is None:
                return _leaf_size(value), 0
            known = self._look_into(value, inner, depth)
        size, height = known
        if depth + height > MAX_DEPTH:
            raise CorruptError(f"a value is nested more than {MAX_DEPTH} deep")
        if size > self._most:
            raise CorruptError(f"a value is more than {self._most} things once it is written out")
        return size, height

    def _look_into(self, value: Any, inner: Collection[Any], depth: int) -> tuple[int, int]:
        if id(value) in self._open:
            raise CorruptError("a value contains itself")
        if depth >= MAX_DEPTH:
            raise CorruptError(f"a value is nested more than {MAX_DEPTH} deep")
        leaves = _size_of_leaves(inner)
        if leaves is not None:
            size, height = 1 + leaves, 1
            if len(inner) <= _LITTLE:
                return size, height
        else:
            self._open.add(id(value))
            size, height = 1, 1
            for item in inner:
                n, below = self.size(item, depth + 1)
                size, height = size + n, max(height, below + 1)
            self._open.discard(id(value))
        self._known[id(value)] = size, height
        return size, height


def _inner(value: Any) -> Collection[Any] | None:
    """What a container holds; None: it is none."""
    kind = type(value)
    if kind in _LISTS:
        found: Collection[Any] = value
        return found
    if kind in DICTS:
        return [*value, *value.values()]
    if kind is Opaque:
        return [value.value]
    if isinstance(value, Unfinished):
        return list(value.inner())
    return None


def _size_of_leaves(inner: Collection[Any]) -> int | None:
    """Of values all of one plain kind, counted in C, for lists are long; None: they have to be looked at one by one."""
    kinds = set(map(type, inner))
    if kinds <= _SMALL:
        return len(inner)
    if kinds == {int}:
        return len(inner) + sum(map(int.bit_length, inner)) // (8 * _THING_BYTES)
    if kinds in ({str}, {bytes}):
        return len(inner) + sum(map(len, inner)) // _THING_BYTES
    return None


def _leaf_size(value: Any) -> int:
    kind = type(value)
    n_bytes: int = 0
    if kind in _LONG:
        n_bytes = len(value)
    elif kind is int:
        n_bytes = value.bit_length() // 8
    elif kind.__module__ == "numpy":
        n_bytes = value.nbytes
    return 1 + n_bytes // _THING_BYTES
