"""How much a value is once it is written out: what is shared counts each time, however it came to be shared."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Collection
from typing import Any

from holdfast.errors import CorruptError
from holdfast.format.pickled.names import Unfinished
from holdfast.format.plain import MAX_DEPTH

DICTS: frozenset[type] = frozenset({dict, OrderedDict, defaultdict, Counter})
_LISTS: frozenset[type] = frozenset({list, tuple, set, frozenset})
_LEAVES: frozenset[type] = frozenset({type(None), bool, int, float, str, bytes})
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
                return 1, 0
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
        size, height = 1 + len(inner), 0
        if _LEAVES.issuperset(map(type, inner)):
            if len(inner) <= _LITTLE:
                return size, 1
        else:
            self._open.add(id(value))
            size = 1
            for item in inner:
                n, below = (1, 0) if type(item) in _LEAVES else self.size(item, depth + 1)
                size, height = size + n, max(height, below)
            self._open.discard(id(value))
        self._known[id(value)] = size, height + 1
        return size, height + 1


def _inner(value: Any) -> Collection[Any] | None:
    """What a container holds; None: it is none."""
    kind = type(value)
    if kind in _LISTS:
        found: Collection[Any] = value
        return found
    if kind in DICTS:
        return [*value, *value.values()]
    if isinstance(value, Unfinished):
        return list(value.inner())
    return None
