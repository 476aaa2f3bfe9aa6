"""What an export writes: the state of a checkpoint as a tree, without what is to be left out."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast.errors import CorruptError, NotFoundError, UnsupportedValueError, UsageError
from holdfast.format import plain
from holdfast.format.nested import DICTS, mark_in, rebuild, refs_in, with_tensors
from holdfast.format.plain import TensorRef
from holdfast.format.records import RESERVED
from holdfast.model.manifest import Manifest
from holdfast.store.tensors import Images, StoredTensor, stored_tensor

OWN_PATHS = f"{RESERVED}per_rank"
"""Key of the plain values under which the paths of values stand that each rank has of its own."""
_SHOWN = 20

Decode = Callable[[bytes], Any]


@dataclass(frozen=True, slots=True)
class Chosen:
    """What is exported.

    Attributes:
        tree: nested, a `TensorRef` where a tensor stands.
        tensors: those of the tree by their names in the checkpoint, in the order of their bytes; a tied one is the
            tensor whose bytes it shares.
        aliases: tied names, each with the one whose bytes it shares.
        left_out: names that are not exported, though the checkpoint has them.
    """

    tree: dict[str, Any]
    tensors: dict[str, StoredTensor]
    aliases: dict[str, str]
    left_out: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """Of all tensors, ties once."""
        return sum(size_of(t) for fqn, t in self.tensors.items() if fqn not in self.aliases)


def size_of(tensor: StoredTensor) -> int:
    """Bytes of all its elements."""
    n = 1
    for length in tensor.record.shape:
        n *= length
    return n * item_bytes(tensor)


def item_bytes(tensor: StoredTensor) -> int:
    """Bytes per element, by the header of an image that holds some."""
    return tensor.entry_of(0).piece.itemsize


def choose(
    images: Images, manifest: Manifest, payload: bytes, *, only: str | None = None, without: Sequence[str] = ()
) -> Chosen:
    """Choose what is exported of a checkpoint.

    Args:
        payload: rank 0's plain values, as tagged JSON.
        only: a key of the state: what stands below it is exported as if it were the whole.
        without: full names, or what they begin with up to a dot.

    Raises: NotFoundError: there is no such key; UsageError: a name leaves out nothing; UnsupportedValueError: tensors
        that are stored by their parts; CorruptError, TierError.
    """
    choosing = _Choosing(manifest, without)
    tree = choosing.pruned((), choosing.whole(_tree_of(payload)))
    choosing.check_used()
    if only is not None:
        tree = _below(tree, only, manifest)
    wanted = set(refs_in(tree))
    records = [t for t in manifest.tensors if t.owner_rank is None and t.fqn in wanted]
    found = [(t.fqn, stored_tensor(images, manifest, t)) for t in records]
    found.sort(key=lambda item: _first_image(item[1]))  # headers are opened in this order
    in_order = dict(sorted(found, key=lambda item: _place(item[1])))
    _refuse_parts(in_order)
    missing = next((fqn for fqn in wanted if fqn not in in_order), None)
    if missing is not None:
        raise CorruptError(f"the plain values name {missing[:200]!r}, and no image holds it", step=manifest.id.step)
    return Chosen(tree, in_order, _ties(manifest, in_order), tuple(choosing.left_out))


def _tree_of(payload: bytes) -> dict[str, Any]:
    tree = plain.decode(payload, keep_unknown=True) if payload else {}
    if type(tree) is not dict or type(tree.get(OWN_PATHS, [])) is not list:
        raise CorruptError("the plain values are no tree")
    return tree


class _Choosing:
    """Leaves out names; remembers which."""

    def __init__(self, manifest: Manifest, without: Sequence[str]) -> None:
        self._manifest, self._without = manifest, without
        self._used: set[str] = set()
        self.left_out: dict[str, None] = {}

    def whole(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        """The state as it nests, but for what belongs to one rank each."""
        own = tree.get(OWN_PATHS, [])
        mine = {key: x for key, x in tree.items() if not any(_is_below(key, path) for path in own)}
        owned = {t.fqn for t in self._manifest.tensors if t.owner_rank is not None}
        self.left_out |= dict.fromkeys([*own, *sorted(owned)])
        names = [t.fqn for t in self._manifest.tensors if t.owner_rank is None]
        return with_tensors(mine, mark_in(tree), names)

    def pruned(self, path: tuple[str, ...], x: Any) -> Any:
        """A value without what is left out: that goes from dicts, and is None in lists."""
        kind = type(x)
        if not self._without:
            return x
        if kind in DICTS:
            kept = [(key, item, (*path, str(key))) for key, item in x.items()]
            return rebuild(x, [(k, self.pruned(at, item)) for k, item, at in kept if self._takes(at, item)])
        if kind in (list, tuple):
            steps = [(item, (*path, str(n))) for n, item in enumerate(x)]
            return kind([self.pruned(at, item) if self._takes(at, item) else None for item, at in steps])
        return x

    def _takes(self, path: tuple[str, ...], x: Any) -> bool:
        names = {".".join(path), *([x.fqn] if type(x) is TensorRef else [])}
        for without in self._without:
            if any(_is_below(name, without) for name in names):
                self._used.add(without)
                self.left_out[".".join(path)] = None
                return False
        return True

    def check_used(self) -> None:
        """Raises: UsageError."""
        known = [name for name in self._without if any(_is_below(out, name) for out in self.left_out)]
        unused = [name for name in self._without if name not in self._used and name not in known]
        if unused:
            raise UsageError(
                f"the checkpoint has nothing called {', '.join(map(repr, unused))}",
                hint="--without takes full names, or what they begin with up to a dot; `holdfast show URL` lists them",
            )


def _is_below(name: str, begin: str) -> bool:
    return name == begin or name.startswith(f"{begin}.")


def _below(tree: dict[str, Any], key: str, manifest: Manifest) -> dict[str, Any]:
    if key not in tree:
        near = difflib.get_close_matches(key, map(str, tree)) or sorted(map(str, tree))
        raise NotFoundError(
            f"{manifest.id} has no {key!r} at its top",
            hint=f"there are {', '.join(near[:_SHOWN])}",
            step=manifest.id.step,
        )
    if type(tree[key]) not in DICTS:
        raise UsageError(f"{key!r} is a single value", hint="--only takes a key that has a dict below it")
    return dict(tree[key])


def _first_image(tensor: StoredTensor) -> int:
    if not tensor.record.chunks:
        raise CorruptError(f"no image holds {tensor.record.fqn!r}")
    return tensor.record.chunks[0].image


def _place(tensor: StoredTensor) -> tuple[int, int, str]:
    """Where its bytes begin: an export reads images from front to back."""
    return _first_image(tensor), tensor.entry_of(0).start, tensor.record.fqn


def _refuse_parts(tensors: Mapping[str, StoredTensor]) -> None:
    by_parts = [
        fqn.rpartition(".")[0] or fqn for fqn, tensor in tensors.items() if tensor.entry_of(0).piece.form is not None
    ]
    if by_parts:
        more = f", and {len(by_parts) - _SHOWN} more" if len(by_parts) > _SHOWN else ""
        raise UnsupportedValueError(
            f"{', '.join(by_parts[:_SHOWN])}{more}: sparse, quantized and other tensors that are stored by their parts "
            "are not exported",
            hint="leave them out: --without NAME",
        )


def _ties(manifest: Manifest, tensors: Mapping[str, StoredTensor]) -> dict[str, str]:
    """Tied names among those chosen. Where the first one was not chosen, another one takes its place."""
    firsts: dict[str, str] = {t.fqn: t.fqn for t in manifest.tensors if t.fqn in tensors and t.alias_of is None}
    ties: dict[str, str] = {}
    for tensor in manifest.tensors:
        if tensor.alias_of is not None and tensor.fqn in tensors:
            first = firsts.setdefault(tensor.alias_of, tensor.fqn)
            if first != tensor.fqn:
                ties[tensor.fqn] = first
    return ties
