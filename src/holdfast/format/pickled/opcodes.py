"""What each opcode of a pickle does; those that are not here, torch has no use for. `machine` has the rest."""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from holdfast.errors import CorruptError, UnsupportedValueError
from holdfast.format.pickled.measure import DICTS
from holdfast.format.pickled.names import SAVE_ANEW, Unfinished

if TYPE_CHECKING:
    from holdfast.format.pickled.machine import Machine

Action = Callable[["Machine"], None]

PROTO, STOP = 0x80, ord(".")
MAX_LONG_BYTES = 4096
_PROTOCOLS = range(2, 6)
_INT, _FLOAT = struct.Struct("<i"), struct.Struct(">d")
_CALL, _NEW = attrgetter("call"), attrgetter("new")

REFUSED = {
    ord("i"): "INST", ord("o"): "OBJ", 0x82: "EXT1", 0x83: "EXT2", 0x84: "EXT4", 0x92: "NEWOBJ_EX", ord("P"): "PERSID",
    0x97: "NEXT_BUFFER", 0x98: "READONLY_BUFFER", ord("I"): "INT", ord("L"): "LONG", ord("F"): "FLOAT",
    ord("S"): "STRING", ord("T"): "BINSTRING", ord("U"): "SHORT_BINSTRING", ord("V"): "UNICODE", ord("l"): "LIST",
    ord("d"): "DICT", ord("p"): "PUT", ord("g"): "GET", ord("0"): "POP", ord("1"): "POP_MARK", ord("2"): "DUP",
}  # fmt: skip
"""Opcodes there are that are not read."""


# Plain values --------------------------------------------------------------------------------------------------------
def _constant(value: Any) -> Action:
    return lambda m: m.stack.append(value)


def _text(length_bytes: int) -> Action:
    return lambda m: m.stack.append(m.take(m.take_int(length_bytes)).decode("utf-8", "surrogatepass"))


def _bytes(length_bytes: int) -> Action:
    return lambda m: m.stack.append(m.take(m.take_int(length_bytes)))


def _number(n_bytes: int) -> Action:
    return lambda m: m.stack.append(m.take_int(n_bytes))


def _long(length_bytes: int) -> Action:
    def act(m: Machine) -> None:
        n = m.take_int(length_bytes)
        if n > MAX_LONG_BYTES:
            raise CorruptError(f"a pickle has an integer of {n} bytes, {MAX_LONG_BYTES} is the most")
        m.stack.append(int.from_bytes(m.take(n), "little", signed=True))

    return act


def _proto(m: Machine) -> None:
    version = m.take_int(1)
    if version not in _PROTOCOLS:
        raise UnsupportedValueError(f"a pickle of protocol {version} is not read, only those of 2 to 5", hint=SAVE_ANEW)


def _frame(m: Machine) -> None:
    if m.take_int(8) > m.size - m.at:
        raise CorruptError("a pickle ends within a frame")


# Containers ----------------------------------------------------------------------------------------------------------
def _mark(m: Machine) -> None:
    m.below.append(m.stack)
    m.buried += len(m.stack)
    m.stack = []


def _tuple_of(n: int) -> Action:
    def act(m: Machine) -> None:
        if len(m.stack) < n:
            raise CorruptError("a pickle makes a tuple of more than there is")
        m.stack[-n:] = [tuple(m.stack[-n:])]

    return act


def _tuple(m: Machine) -> None:
    items = m.unmark()
    m.stack.append(tuple(items))


def _append(m: Machine) -> None:
    item = m.stack.pop()
    _target(m, "list", type(m.stack[-1]) is list).append(item)


def _appends(m: Machine) -> None:
    items = m.unmark()
    _target(m, "list", type(m.stack[-1]) is list).extend(items)


def _set_item(m: Machine) -> None:
    value, key = m.stack.pop(), m.stack.pop()
    m.check_keys((key,))
    _target(m, "dict", type(m.stack[-1]) in DICTS)[key] = value


def _set_items(m: Machine) -> None:
    items = m.unmark()
    keys, values = items[::2], items[1::2]
    m.check_keys(keys)
    target = _target(m, "dict", type(m.stack[-1]) in DICTS)
    for key, value in zip(keys, values, strict=True):  # not `update`: a Counter would count
        target[key] = value


def _add_items(m: Machine) -> None:
    items = m.unmark()
    m.check_keys(items)
    _target(m, "set", type(m.stack[-1]) is set).update(items)


def _frozenset(m: Machine) -> None:
    items = m.unmark()
    m.check_keys(items)
    m.stack.append(frozenset(items))


def _target(m: Machine, what: str, fits: bool) -> Any:
    if not fits:
        raise CorruptError(f"a pickle fills a {type(m.stack[-1]).__name__} as if it were a {what}")
    return m.stack[-1]


# Memo ----------------------------------------------------------------------------------------------------------------
def _put(length_bytes: int) -> Action:
    return lambda m: _remember(m, m.take_int(length_bytes))


def _memoize(m: Machine) -> None:
    _remember(m, len(m.memo))


def _remember(m: Machine, place: int) -> None:
    made = m.stack[-1]
    m.memo[place] = made
    if isinstance(made, Unfinished):
        made.memo_at = place


def _get(length_bytes: int) -> Action:
    return lambda m: m.stack.append(m.memo[m.take_int(length_bytes)])


# Names and what they make --------------------------------------------------------------------------------------------
def _global(m: Machine) -> None:
    module = m.take_line()
    m.stack.append(m.name(module, m.take_line()))


def _stack_global(m: Machine) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    if type(name) is not str or type(module) is not str:
        raise CorruptError("a pickle has a name that is no text")
    m.stack.append(m.name(module, name))


def _reduce(m: Machine) -> None:
    args, function = m.stack.pop(), m.stack.pop()
    m.stack.append(m.call(_CALL, function, args))


def _new_object(m: Machine) -> None:
    args, kind = m.stack.pop(), m.stack.pop()
    m.stack.append(m.call(_NEW, kind, args))


def _build(m: Machine) -> None:
    """Attributes of an OrderedDict, as a module's `state_dict` has them, are nobody's values."""
    state, made = m.stack.pop(), m.stack[-1]
    if type(made) is OrderedDict:
        return
    if not isinstance(made, Unfinished):
        raise UnsupportedValueError(f"a {type(made).__name__} would be built from a state", hint=SAVE_ANEW)
    m.pay((state,))
    built = made.build(state)
    m.stack[-1] = built
    if built is not made and made.memo_at is not None:
        m.memo[made.memo_at] = built


def _persistent(m: Machine) -> None:
    if m.meanings.persistent is None:
        raise UnsupportedValueError("a pickle refers to something outside of it", hint=SAVE_ANEW)
    m.stack.append(m.meanings.persistent(m.stack.pop()))


def _refuse(code: int) -> Action:
    def act(m: Machine) -> None:
        if code in REFUSED:
            raise UnsupportedValueError(f"a pickle with the opcode {REFUSED[code]} is not read", hint=SAVE_ANEW)
        raise CorruptError(f"byte {m.at - 1} of a pickle is no opcode")

    return act


_READ: dict[int, Action] = {
    PROTO: _proto,
    0x95: _frame,
    ord("N"): _constant(None),
    0x88: _constant(True),
    0x89: _constant(False),
    ord("J"): lambda m: m.stack.append(_INT.unpack(m.take(4))[0]),
    ord("K"): _number(1),
    ord("M"): _number(2),
    0x8A: _long(1),
    0x8B: _long(4),
    ord("G"): lambda m: m.stack.append(_FLOAT.unpack(m.take(8))[0]),
    ord("X"): _text(4),
    0x8C: _text(1),
    0x8D: _text(8),
    ord("B"): _bytes(4),
    ord("C"): _bytes(1),
    0x8E: _bytes(8),
    0x96: lambda m: m.stack.append(bytearray(m.take(m.take_int(8)))),
    ord("("): _mark,
    ord(")"): _constant(()),
    ord("t"): _tuple,
    0x85: _tuple_of(1),
    0x86: _tuple_of(2),
    0x87: _tuple_of(3),
    ord("]"): lambda m: m.stack.append([]),
    ord("a"): _append,
    ord("e"): _appends,
    ord("}"): lambda m: m.stack.append({}),
    ord("s"): _set_item,
    ord("u"): _set_items,
    0x8F: lambda m: m.stack.append(set()),
    0x90: _add_items,
    0x91: _frozenset,
    ord("q"): _put(1),
    ord("r"): _put(4),
    0x94: _memoize,
    ord("h"): _get(1),
    ord("j"): _get(4),
    ord("c"): _global,
    0x93: _stack_global,
    ord("R"): _reduce,
    0x81: _new_object,
    ord("b"): _build,
    ord("Q"): _persistent,
}
ACTIONS: list[Action] = [_READ.get(code) or _refuse(code) for code in range(256)]
"""By opcode; STOP, which ends a pickle, has none."""
