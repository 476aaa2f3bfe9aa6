"""What a pickle gave, as plain values: its tensors are named by where they stand, the rest is looked through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from holdfast.format.nested import DICTS, rebuild
from holdfast.format.pickled.meanings import TensorView
from holdfast.format.pickled.names import Meaning
from holdfast.format.plain import Opaque, TensorRef
from holdfast.store.importing.source import Gathering

_LEAVES = frozenset({type(None), bool, int, float, str, bytes, Opaque})
_KEYS = frozenset({type(None), bool, int, float, str, bytes})

Place = Callable[[str, TensorView], None]
"""Takes in a tensor under the name that the source has for it."""


class Values:
    """Makes plain values of what the machine read.

    What cannot be one is a problem of the gathering, by its name; what is asked to be left out goes from dicts, and is
    None in lists.
    """

    def __init__(self, gathering: Gathering, place: Place) -> None:
        self._gathering, self._place = gathering, place

    def items(self, name: str, x: Any) -> Any:
        """A dict without what is left out."""
        begin = f"{name}." if name else ""
        kept = [(key, item) for key, item in x.items() if self._gathering.takes(f"{begin}{key}")]
        for key, _ in kept:
            if not _is_key(key):
                self._gathering.problem(f"{begin}{str(key)[:80]}", f"a {type(key).__name__} as a key")
        return rebuild(x, [(key, self.value(f"{begin}{key}", item)) for key, item in kept])

    def value(self, name: str, x: Any) -> Any:  # noqa: PLR0911  (one per kind of thing)
        """The value that is to stand in the tree."""
        kind = type(x)
        if kind in _LEAVES:
            return x
        if kind is TensorView:
            self._place(name, x)
            return TensorRef(self._gathering.full(name))
        if kind in DICTS:
            return self.items(name, x)
        if kind in (list, tuple):
            return kind([self._item(f"{name}.{n}", item) for n, item in enumerate(x)])
        if kind in (set, frozenset):
            if not all(map(_is_key, x)):
                self._gathering.problem(name, "a set of more than plain values")
            return x
        if _is_of_numpy(kind):
            return x
        self._gathering.problem(name, f"the name {x.name}" if kind is Meaning else f"a {kind.__name__}")
        return None

    def _item(self, name: str, x: Any) -> Any:
        return self.value(name, x) if self._gathering.takes(name) else None


def _is_key(key: Any) -> bool:
    kind = type(key)
    if kind in (tuple, frozenset):
        return all(map(_is_key, key))
    return kind in _KEYS or _is_of_numpy(kind) or (kind is Opaque and type(key.value) is str)


def _is_of_numpy(kind: type) -> bool:
    return kind.__module__ == "numpy"
