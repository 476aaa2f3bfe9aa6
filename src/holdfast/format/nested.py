"""Flat names and the tree they come from: torch DCP's rule of flattening, and the mark that says how names nest.

A checkpoint that was written elsewhere has its plain values as a tree, and of its tensors the names. Where a tensor
stands in the tree follows from its name by the mark, or else the tree has a `TensorRef` there.

    "__holdfast__.dcp": {"nested": true, "flat": [["model"]], "state": [["optim"]]}

Below the longest root of `flat` that begins a name the rest of it is one key; below one of `state` it is "state", the
parameter, the key. With `nested` false every name is a key of the tree itself.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from holdfast.errors import CorruptError, UnsupportedValueError
from holdfast.format.plain import MAX_DEPTH, Opaque, TensorRef
from holdfast.format.records import RESERVED

Path = tuple[str | int, ...]
"""Keys of dicts, as text, and places in lists."""
Root = tuple[str, ...]

DCP_MARK = "__holdfast__.dcp"
DICTS = (dict, OrderedDict, defaultdict, Counter)
_MANY = 8
"""A container of so many tensors and more is a root of `flat`."""
_HOLES = 2**16
"""Lists may be longer than their items by so many in all: DCP loses empty containers in them."""


def is_reserved(path: str) -> bool:
    """Whether a key of a tree is Holdfast's own, and nobody's path."""
    return path.startswith(RESERVED)


# torch's rule --------------------------------------------------------------------------------------------------------
def flatten(tree: Mapping[Any, Any]) -> tuple[dict[str, Any], dict[str, Path]]:
    """Values and paths by flat name, as torch's `flatten_state_dict` has them; a tensor is a `TensorRef`.

    Dicts are looked into always, lists where they hold tensors or dicts, tuples never. Empty dicts are lost.

    Raises: UnsupportedValueError when two things get one name.
    """
    values: dict[str, Any] = {}
    paths: dict[str, Path] = {}
    for path, value in _leaves((), tree):
        name = ".".join(map(str, path))
        if name in paths:
            raise UnsupportedValueError(f"two things are called {name[:200]!r}", hint="rename a key")
        values[name], paths[name] = value, path
    return values, paths


def _leaves(path: Path, value: Any) -> Iterator[tuple[Path, Any]]:
    if type(value) in DICTS:
        for key, item in value.items():
            yield from _leaves((*path, str(key)), item)
    elif not _is_opened(value):
        yield path, value
    else:
        for n, item in enumerate(value):
            yield from _leaves((*path, n), item)


def _is_opened(value: Any) -> bool:
    """Whether a list is looked into."""
    return type(value) is list and any(
        type(item) in DICTS or type(item) is TensorRef or _is_opened(item) for item in value
    )


def unflatten(values: Mapping[str, Any], paths: Mapping[str, Path]) -> dict[str, Any]:
    """The tree in which the values stand at their paths: dicts where a path goes on with text, else lists.

    Raises: CorruptError: a path leads through another one's value, or is none.
    """
    unfolding = _Unfolding(len(paths) + _HOLES)
    for name, value in values.items():
        path = paths[name]
        if not 0 < len(path) <= MAX_DEPTH:
            raise CorruptError(f"{name[:200]!r} has no path in the state")
        unfolding.put(path, value)
    return unfolding.tree


class _Unfolding:
    """A tree that grows by values at their paths. Containers among the values are not gone into."""

    def __init__(self, most_holes: int) -> None:
        self.tree: dict[str, Any] = {}
        self._holes_left = most_holes
        self._made = {id(self.tree)}

    def put(self, path: Path, value: Any) -> None:
        """Raises: CorruptError."""
        here: Any = self.tree
        for step, following in pairwise(path):
            there = self._get(here, step)
            if there is None:
                there = {} if type(following) is str else []
                self._made.add(id(there))
                self._set(here, step, there)
            here = there
        if self._get(here, path[-1]) is not None:
            raise CorruptError(f"two values have the path {'.'.join(map(str, path))[:200]!r}")
        self._set(here, path[-1], value)

    def _get(self, here: Any, step: str | int) -> Any:
        """What stands there; None: nothing."""
        if id(here) in self._made:
            if type(step) is str and type(here) is dict:
                return here.get(step)
            if type(step) is int and type(here) is list and step >= 0:
                return here[step] if step < len(here) else None
        raise CorruptError(f"{str(step)[:80]!r} is no step in the path of a value")

    def _set(self, here: Any, step: Any, value: Any) -> None:
        if type(here) is list:
            self._holes_left -= max(0, step - len(here))
            if self._holes_left < 0:
                raise CorruptError("the paths of values leave lists nearly empty")
            here += [None] * (step + 1 - len(here))
        here[step] = value


# The mark ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Mark:
    """How names nest.

    `planner_data` are those of torch DCP, where names do not nest by its rule. `cut`: what no root begins is cut after
    its first dot, as a Checkpointer's names are.
    """

    nested: bool = True
    flat: tuple[Root, ...] = ()
    state: tuple[Root, ...] = ()
    planner_data: Any = None
    cut: bool = False
    _begins: dict[str, tuple[Root, bool]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        begins = {_dotted(root): (root, False) for root in self.flat}
        begins |= {_dotted((*root, "state")): (root, True) for root in self.state}
        object.__setattr__(self, "_begins", begins)

    def path_of(self, name: str) -> Path | None:
        """Where the tensor of that name stands; None when that does not follow from the name."""
        if not self.nested:
            return (name,)
        for at in (*reversed([i + 1 for i, letter in enumerate(name) if letter == "."]), 0):
            root, of_state = self._begins.get(name[:at], (None, False))
            rest = name[at:]
            if root is not None and not of_state and rest:
                return (*root, rest)
            parameter, _, key = rest.rpartition(".")
            if root is not None and of_state and parameter and key:
                return (*root, "state", parameter, key)
        head, _, rest = name.partition(".")
        return None if not self.cut else (head, rest) if head and rest else (name,)

    def to_plain(self) -> dict[str, Any]:
        """As the plain values of an image have it."""
        if not self.nested:
            return {"nested": False} | ({} if self.planner_data is None else {"planner_data": self.planner_data})
        return {"nested": True, "flat": [list(r) for r in self.flat], "state": [list(r) for r in self.state]}


def _dotted(root: Root) -> str:
    return "".join([f"{key}." for key in root])


def mark_in(tree: Mapping[str, Any]) -> Mark:
    """The mark of a checkpoint's plain values, or the rule for those of a Checkpointer, which have none.

    Raises: CorruptError.
    """
    found = tree.get(DCP_MARK)
    if found is None:
        optimizers = (k for k, v in tree.items() if type(v) is dict and "param_groups" in v and not is_reserved(k))
        return Mark(state=tuple([(key,) for key in optimizers]), cut=True)
    if type(found) is not dict or type(found.get("nested")) is not bool:
        raise CorruptError("the mark of a checkpoint's names is none")
    flat, state = _roots(found.get("flat", [])), _roots(found.get("state", []))
    return Mark(found["nested"], flat, state, found.get("planner_data"))


def _roots(value: Any) -> tuple[Root, ...]:
    good = type(value) is list and all(type(r) is list and all(type(key) is str for key in r) for r in value)
    if not good:
        raise CorruptError("the mark of a checkpoint's names has roots that are none")
    return tuple([tuple(root) for root in value])


def mark_for(tree: Mapping[Any, Any]) -> Mark:
    """A mark by which the places of most tensors of a tree follow from their names."""
    flat: list[Root] = []
    state: list[Root] = []
    _find_roots((), tree, flat, state)
    return Mark(flat=tuple(flat), state=tuple(state))


def _find_roots(root: Root, here: Mapping[Any, Any], flat: list[Root], state: list[Root]) -> None:
    begin = _dotted(root)
    direct = sum(type(x) is TensorRef and x.fqn == f"{begin}{key}" for key, x in here.items())
    if direct >= _MANY:
        flat.append(root)
    is_optimizer = "param_groups" in here and type(here.get("state")) in DICTS
    if is_optimizer:
        state.append(root)
    for key, x in here.items():
        if type(x) in DICTS and type(key) is str and not (is_optimizer and key == "state"):
            _find_roots((*root, key), x, flat, state)


# Trees with and without their tensors --------------------------------------------------------------------------------
def without_tensors(tree: Mapping[str, Any], mark: Mark) -> dict[str, Any]:
    """The tree without the tensors whose places follow from their names, and without what is empty then."""
    return dict(_without((), tree, mark))


def _without(path: Path, here: Mapping[Any, Any], mark: Mark) -> Iterator[tuple[Any, Any]]:
    for key, x in here.items():
        at = (*path, key)
        if type(x) is TensorRef and mark.path_of(x.fqn) == at:
            continue
        if type(x) in DICTS and x:
            left = list(_without(at, x, mark))
            if left:
                yield key, rebuild(x, left)
        else:
            yield key, x


def with_tensors(tree: Mapping[str, Any], mark: Mark, names: Iterable[str]) -> dict[str, Any]:
    """The tree with a `TensorRef` for every one of the names, where the mark says, or as a key of its own.

    Reserved keys are left out. Raises: CorruptError: something else stands there.
    """
    values = {key: x for key, x in tree.items() if not is_reserved(key)}
    whole: dict[str, Any] = _copied(values)
    mentioned = set(refs_in(whole))
    for name in names:
        if name in mentioned:
            continue
        path = mark.path_of(name) or (name,)
        if not _place(whole, path, TensorRef(name)) and not _place(whole, (name,), TensorRef(name)):
            raise CorruptError(f"{name[:200]!r} is a tensor, and something else has its name")
    return whole


def _place(tree: dict[str, Any], path: Path, value: TensorRef) -> bool:
    """Put it there unless something is in the way."""
    here: Any = tree
    for step in path[:-1]:
        if type(here) not in DICTS:
            return False
        here = here.setdefault(step, {})
    if type(here) not in DICTS or path[-1] in here:
        return False
    here[path[-1]] = value
    return True


def _copied(x: Any) -> Any:
    """A copy of the dicts, which are added to; all else is shared."""
    if type(x) in DICTS:
        return rebuild(x, [(key, _copied(item)) for key, item in x.items()])
    return x


def rebuild(container: Any, pairs: Iterable[tuple[Any, Any]]) -> Any:
    """A dict of the same kind as `container` with these items."""
    if type(container) is defaultdict:
        return defaultdict(container.default_factory, pairs)
    if type(container) is Counter:
        return Counter(dict(pairs))
    return type(container)(pairs)


def refs_in(x: Any) -> Iterator[str]:
    """The names of tensors that a value mentions."""
    if type(x) is TensorRef:
        yield x.fqn
    elif type(x) is Opaque:
        yield from refs_in(x.value)
    elif type(x) in DICTS or type(x) in (list, tuple):
        for item in x.values() if type(x) in DICTS else x:
            yield from refs_in(item)
