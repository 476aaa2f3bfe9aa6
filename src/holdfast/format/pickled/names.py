"""What a name in a pickle may stand for: a function of ours, a value, nothing that is looked up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from holdfast.errors import CorruptError

SAVE_ANEW = "save it anew from plain values and tensors, or leave it out where that is possible"


@dataclass(frozen=True, slots=True, eq=False)
class Meaning:
    """What a name stands for that is no value.

    Attributes:
        name: as the pickle has it.
        call: what REDUCE on it calls, with the arguments in the pickle; None: it is not called.
        new: the same for NEWOBJ.
        members: whether `call` hashes what its arguments contain.
        value: what other functions make of it when it is an argument of theirs.
    """

    name: str
    call: Callable[..., Any] | None = None
    new: Callable[..., Any] | None = None
    members: bool = False
    value: Any = None


class Unfinished:
    """What a call made that BUILD is to finish. Equal to itself only, so that it may be a key of a dict."""

    __slots__ = ("memo_at",)

    def __init__(self) -> None:
        self.memo_at: int | None = None
        """Where the memo has it."""

    def build(self, state: Any) -> Any:
        """What it becomes: itself, or something else in its place. Any exception: it cannot be built so."""
        raise CorruptError(f"a {type(self).__name__} cannot be built")

    def inner(self) -> Iterable[Any]:
        """The values in it."""
        return ()


@dataclass(frozen=True, slots=True)
class Meanings:
    """The names of one kind of file, by module and name: a `Meaning`, or the value that stands for the name.

    `persistent` makes the object of a persistent id; None: the kind has none.
    """

    names: Mapping[tuple[str, str], Any]
    persistent: Callable[[Any], Any] | None = None
