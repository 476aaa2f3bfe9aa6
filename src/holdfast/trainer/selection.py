"""Which part of a state a load is asked for: keys of the state, or dotted names below them."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from holdfast.errors import StructureError, UsageError
from holdfast.trainer.differences import likely_names


class Selection:
    """Names, and all that stands below them; None: everything."""

    def __init__(self, only: Collection[str] | None) -> None:
        self._names: tuple[str, ...] | None = None
        if only is None:
            return
        if isinstance(only, str):
            raise UsageError(f"only={only!r} is one string", hint=f"pass a tuple of names: only=({only!r},)")
        names = tuple(only) if isinstance(only, Iterable) else ()  # perhaps a generator, which gives them once
        if not names or not all(isinstance(name, str) and name for name in names):
            given = names or only
            raise UsageError(
                f"only={given!r} names nothing", hint='pass keys of the state, for example only=("model",)'
            )
        self._names = tuple(dict.fromkeys(names))

    def takes(self, path: str) -> bool:
        """Whether all that stands at the path is asked for."""
        return self._names is None or any(path == name or path.startswith(f"{name}.") for name in self._names)

    def reaches(self, path: str) -> bool:
        """Whether the path, or something below it, is asked for."""
        return self.takes(path) or any(name.startswith(f"{path}.") for name in self._names or ())

    def require(self, found: Iterable[str]) -> None:
        """Refuse names that select none of what was `found` in state and checkpoint. Raises: StructureError."""
        there = list(found)
        absent = [n for n in self._names or () if not any(f == n or f.startswith(f"{n}.") for f in there)]
        if absent:
            near = likely_names(absent, there)
            raise StructureError(
                f"the state has no {', '.join(map(repr, absent))}",
                hint="`only` takes keys of the state, or dotted names below them, or None for all that the state has"
                + (f"; {near}" if near else ""),
            )

    def whole(self, path: str, what: str) -> StructureError:
        """The error for a name that reaches into what is loaded whole or not at all."""
        inside = [n for n in self._names or () if n.startswith(f"{path}.")]
        return StructureError(
            f"{', '.join(map(repr, inside))} is inside {what} {path!r}, which is loaded as a whole",
            hint=f"pass {path!r} in `only`, or leave it out",
        )
