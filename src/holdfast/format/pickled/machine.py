"""Reads a pickle without running it: no pickle module, no import, no lookup by name, no call but of our own functions.

A name is a key of the table that is given, or the pickle is refused, by that name. `REDUCE` and `NEWOBJ` call what a
name of the table stands for, `BUILD` finishes what such a call has made; on anything else they are refused.

Bounds: everything a pickle makes is in proportion to its own length. What it shares counts each time it is reached,
because whoever uses the value meets it each time.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from holdfast.errors import CorruptError, HoldfastError, UnsupportedValueError
from holdfast.format.checksum import Buffer
from holdfast.format.pickled.measure import check_size
from holdfast.format.pickled.names import SAVE_ANEW, Meaning, Meanings
from holdfast.format.pickled.opcodes import ACTIONS, PROTO, STOP

MAX_PICKLE_BYTES = 2**30
MAX_OPCODES = 2**27
MAX_THINGS = 2**26
"""On the stack and in the memo; reached when a value is looked through."""
MAX_ODD_KEYS = 8192
"""Keys whose hash a hostile file can choose, so that each meets all others: what is no text, bytes or small integer."""
MAX_NAME_BYTES = 512

_ROUND = 2**16
_COPIES = 4
_ANYWAY = 2**18
_SURE_INT = 2**60
_KEY_DEPTH = 8
_SURE_KEYS: frozenset[type] = frozenset({str, bytes, bool, type(None)})
_SIZED = frozenset({str, bytes, bytearray, tuple, list, dict, set, frozenset})
_NO_NAME = object()


def read(data: Buffer, meanings: Meanings) -> Any:
    """The value of a pickle: plain values, and what `meanings` makes. Containers may be shared; none contains itself.

    Raises: UnsupportedValueError for a name or an opcode that is not in the tables, naming it; CorruptError for bytes
        that are no whole pickle, or pass a bound.
    """
    if len(data) > MAX_PICKLE_BYTES:
        raise CorruptError(f"a pickle of {len(data)} bytes passes the limit of {MAX_PICKLE_BYTES}")
    try:
        value = Machine(bytes(data), meanings).run()
    except HoldfastError:
        raise
    except (LookupError, TypeError, ValueError, OverflowError, AttributeError, struct.error) as e:
        raise CorruptError(f"a pickle cannot be read: {str(e)[:200]}") from None
    check_size(value, most=min(MAX_THINGS, _ANYWAY + _COPIES * len(data)))
    return value


class Machine:
    """Stack and memo of one pickle that is being read. The actions of `opcodes` work on it.

    Invariant: `stack` is what stands above the last mark, `below` the stacks under it, `buried` how much they hold.
    """

    def __init__(self, data: bytes, meanings: Meanings) -> None:
        self.data, self.at, self.size = data, 0, len(data)
        self.meanings = meanings
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.buried = 0
        self.memo: dict[int, Any] = {}
        self._odd_keys = 0
        self._budget = _ANYWAY + _COPIES * len(data)

    def run(self) -> Any:
        """Act on every opcode up to STOP, which ends the pickle."""
        if self.data[:1] != bytes([PROTO]):
            raise CorruptError("this does not begin as a pickle of protocol 2 to 5 does")
        for _ in range(MAX_OPCODES // _ROUND):
            for _ in range(_ROUND):
                code = self.data[self.at]
                self.at += 1
                if code == STOP:
                    return self._finish()
                ACTIONS[code](self)
            if len(self.stack) + self.buried + len(self.memo) > MAX_THINGS:
                raise CorruptError(f"a pickle keeps more than {MAX_THINGS} things at once")
        raise CorruptError(f"a pickle has more than {MAX_OPCODES} opcodes")

    def _finish(self) -> Any:
        if self.at != self.size or self.below or len(self.stack) != 1:
            raise CorruptError("a pickle has something behind its end, or ends before it is one value")
        return self.stack[0]

    # For opcodes -----------------------------------------------------------------------------------------------------
    def take(self, n_bytes: int) -> bytes:
        """The next bytes. Raises: CorruptError where fewer are left."""
        start, self.at = self.at, self.at + n_bytes
        if self.at > self.size:
            raise CorruptError("a pickle ends within an opcode")
        return self.data[start : self.at]

    def take_int(self, n_bytes: int) -> int:
        """The next bytes as a number without sign."""
        return int.from_bytes(self.take(n_bytes), "little")

    def take_line(self) -> str:
        """Text up to the end of its line. Raises: CorruptError."""
        stop = self.data.find(b"\n", self.at, self.at + MAX_NAME_BYTES)
        if stop < 0:
            raise CorruptError("a pickle has a name without end")
        line, self.at = self.data[self.at : stop], stop + 1
        return line.decode()

    def unmark(self) -> list[Any]:
        """Everything above the last mark, which goes. Raises: CorruptError where there is none."""
        if not self.below:
            raise CorruptError("a pickle has no mark where one is needed")
        items, self.stack = self.stack, self.below.pop()
        self.buried -= len(self.stack)
        return items

    def name(self, module: str, name: str) -> Any:
        """What a name of the table stands for. Raises: UnsupportedValueError."""
        found = self.meanings.names.get((module, name), _NO_NAME)
        if found is _NO_NAME:
            raise UnsupportedValueError(
                f"{module[:80]}.{name[:80]} is needed to read it, and is not among the names that are read",
                hint=SAVE_ANEW,
            )
        return found

    def call(self, how: Callable[[Meaning], Callable[..., Any] | None], what: Any, args: Any) -> Any:
        """What a function of ours makes of arguments in the pickle. Raises: UnsupportedValueError, CorruptError."""
        function = how(what) if type(what) is Meaning else None
        if function is None:
            named = what.name if type(what) is Meaning else f"a {type(what).__name__}"
            raise UnsupportedValueError(f"{named} would be called to read it", hint=SAVE_ANEW)
        if type(args) is not tuple:
            raise CorruptError(f"the arguments of {what.name} are no tuple")
        self.pay(args)
        if what.members:
            for arg in args:
                self.check_keys(arg)
        return function(*args)

    def pay(self, args: Sequence[Any]) -> None:
        """Count what is copied out of some values: a call takes a few bytes, what it copies may be the whole file.

        Raises: CorruptError where that gets out of proportion.
        """
        for arg in args:
            if type(arg) in _SIZED:
                self._budget -= len(arg)
            if type(arg) is tuple:
                self._budget -= sum([len(inner) for inner in arg if type(inner) in _SIZED])
        if self._budget < 0:
            raise CorruptError("a pickle makes far more than it contains")

    def check_keys(self, keys: Iterable[Any]) -> None:
        """Look at keys of a dict or members of a set before they are hashed. Raises: CorruptError."""
        for key in keys:
            kind: Any = type(key)
            if kind in _SURE_KEYS or (kind is int and -_SURE_INT < key < _SURE_INT):
                continue
            if kind.__hash__ is object.__hash__:
                continue
            self._odd_keys += 1
            if self._odd_keys > MAX_ODD_KEYS:
                raise CorruptError(f"a pickle has more than {MAX_ODD_KEYS} keys that are no text and no small integer")
            if kind is tuple:
                self._check_tuple(key, 1)

    def _check_tuple(self, key: tuple[Any, ...], depth: int) -> None:
        """Hashing goes down without looking: it may be neither deep nor, again and again, long."""
        self.pay((key,))
        if depth > _KEY_DEPTH:
            raise CorruptError(f"a key is nested more than {_KEY_DEPTH} deep")
        for item in key:
            if type(item) is tuple:
                self._check_tuple(item, depth + 1)
