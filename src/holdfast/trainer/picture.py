"""All tensors of a state as parallel lists, so that comparing two moments takes a few passes in C."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, compress
from operator import attrgetter, eq, is_, is_not, ne, or_

import torch
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from holdfast.errors import UnsupportedValueError
from holdfast.format.records import RESERVED
from holdfast.trainer import dtensor
from holdfast.trainer.modules import Block
from holdfast.trainer.structure import Boxes, Kind, Structure, TensorSpec
from holdfast.trainer.values import dtype_name

Tensors = Mapping[str, torch.Tensor]
Way = tuple[tuple[int, ...], bool, bool]

_shape = attrgetter("shape")
_dtype = attrgetter("dtype")


@dataclass(frozen=True)
class Picture:
    """One moment. `addresses` are those of the first element, 0 for an empty tensor; of a DTensor, in its local tensor.

    A tensor object may get other memory, shape or dtype and stay the same object (`p.data = ...`, `module.half()`),
    so identity alone does not say that nothing changed.
    """

    names: list[str]
    kinds: list[Kind]
    own: list[bool]
    tensors: list[torch.Tensor]
    shapes: list[torch.Size]
    dtypes: list[torch.dtype]
    addresses: list[int]
    forms: dict[str, str]
    """By name: what makes a tensor of its parts, of which this is the first."""

    @classmethod
    def of(cls, blocks: Sequence[Block]) -> Picture:
        names, kinds, own, tensors = _columns(blocks)
        shapes, dtypes = _shapes(names, tensors), list(map(_dtype, tensors))
        return cls(names, kinds, own, tensors, shapes, dtypes, _addresses(tensors), _forms(blocks))

    def next(self, blocks: Sequence[Block]) -> Picture | None:
        """The picture now: itself if nothing changed, None if names, shapes, dtypes or ties did.

        Shapes are compared as they come: keeping a new tuple of each tensor would have Python look for garbage.
        """
        names, kinds, own, tensors = _columns(blocks)
        same_form = (
            names == self.names
            and kinds == self.kinds
            and own == self.own
            and _forms(blocks) == self.forms
            and all(map(is_, map(_dtype, tensors), self.dtypes))
            and all(map(eq, map(_shape, tensors), self.shapes))
        )
        if not same_form:
            return None
        addresses = _addresses(tensors)
        if addresses == self.addresses and all(map(is_, tensors, self.tensors)):
            return self if self._look() == self._ways else None
        if not self._cut_alike(tensors):
            return None
        found = replace(self, tensors=tensors, addresses=addresses)
        return found if found.ties == self.ties else None

    def _cut_alike(self, tensors: list[torch.Tensor]) -> bool:
        """Whether tensors that came new hold the same boxes as those before them."""
        new = compress(zip(tensors, self.tensors, strict=True), map(is_not, tensors, self.tensors))
        return all(_why_not(now) is None and dtensor.boxes_of(now) == dtensor.boxes_of(before) for now, before in new)

    @cached_property
    def ties(self) -> dict[str, str]:
        """Further name -> first name of shared tensors that are one and the same memory, seen the same way.

        A name that carries a form comes before those that do not, or the form would be lost.
        """
        first: dict[object, str] = {}
        found: dict[str, str] = {}
        rows: Iterable[tuple[int, Way]] = zip(self._meeting, self._ways, strict=True)
        if self.forms:
            rows = sorted(rows, key=lambda row: self.names[row[0]] not in self.forms)
        for i, seen in rows:
            name = self.names[i]
            key = (self.addresses[i], self.dtypes[i], self.shapes[i], self.tensors[i].device, seen)
            if first.setdefault(key, name) != name:
                found[name] = first[key]
        return found

    @cached_property
    def _meeting(self) -> list[int]:
        """Places of shared tensors that begin where others begin."""
        counts = Counter(self.addresses)
        del counts[0]
        if len(counts) + self.addresses.count(0) == len(self.addresses):
            return []
        rows = enumerate(zip(self.addresses, self.own, strict=True))
        return [i for i, (address, own) in rows if counts[address] > 1 and not own]

    @cached_property
    def _ways(self) -> list[Way]:
        """How they saw their memory when first asked, which `structure` and `next` do."""
        return self._look()

    def _look(self) -> list[Way]:
        return [way(dtensor.local_of(self.tensors[i])) for i in self._meeting]

    def structure(self) -> Structure:
        """Raises: UnsupportedValueError: two tensors with one name, or one that cannot be saved."""
        self._refuse_collisions()
        aliases = self.ties
        self._refuse_half_ties(aliases)
        specs: tuple[dict[str, TensorSpec], dict[str, TensorSpec]] = ({}, {})
        cuts: dict[tuple[torch.Size, Boxes], int] = {}
        for name, kind, own, tensor in zip(self.names, self.kinds, self.own, self.tensors, strict=True):
            check_tensor(name, tensor, own=own)
            if own or name not in aliases:
                dtype = tensor.dtype
                boxes = dtensor.boxes_of(tensor)
                cut = None if boxes is None else cuts.setdefault((tensor.shape, boxes), len(cuts))
                form = self.forms.get(name)
                shape = tuple(tensor.shape)
                specs[own][name] = TensorSpec(shape, dtype_name(dtype), dtype.itemsize, kind, form, cut)
        return Structure(*specs, aliases, tuple(boxes for _, boxes in cuts))

    def tensors_of(self, structure: Structure) -> tuple[Tensors, Tensors]:
        """The tensors of its shared part, and of its own; of DTensors the local ones.

        Raises: UnsupportedValueError: one has no memory yet.
        """
        tensors = dtensor.locals_of(self.tensors)
        _refuse_no_memory(zip(self.names, tensors, strict=True))
        by_name = dict(zip(self.names, tensors, strict=True))
        own = {name: by_name[name] for name in structure.own}
        return {name: by_name[name] for name in structure.shared}, own

    def tensors_after(self, before: Picture, shared: Tensors, own: Tensors) -> tuple[Tensors, Tensors]:
        """As `tensors_of`, from what it was for an earlier picture of the same structure.

        Raises: UnsupportedValueError: a tensor that came new cannot be saved.
        """
        now = {False: dict(shared), True: dict(own)}
        # A DTensor may stay the same object and get another local tensor.
        moved = map(or_, map(is_not, self.tensors, before.tensors), map(ne, self.addresses, before.addresses))
        new = compress(zip(self.names, self.tensors, self.own, strict=True), moved)
        for name, tensor, is_own in new:
            check_tensor(name, tensor, own=is_own)
            _refuse_no_memory([(name, dtensor.local_of(tensor))])
            if name in now[is_own]:  # a tied one's further names are not
                now[is_own][name] = dtensor.local_of(tensor)
        return now[False], now[True]

    def _refuse_half_ties(self, aliases: Mapping[str, str]) -> None:
        for name, first in aliases.items():
            if name in self.forms and self.forms.get(first) != self.forms[name]:
                raise UnsupportedValueError(
                    f"{name!r} and {first!r} are parts of two different tensors and share their memory",
                    hint="clone() one of the tensors",
                )

    def _refuse_collisions(self) -> None:
        seen: set[str] = set()
        for name in self.names:
            if name in seen:
                raise UnsupportedValueError(
                    f"two things in the state have the name {name!r}",
                    hint="rename a key: names are the keys on the way, joined by dots",
                )
            seen.add(name)


def _columns(blocks: Sequence[Block]) -> tuple[list[str], list[Kind], list[bool], list[torch.Tensor]]:
    return (
        list(chain.from_iterable(b.names for b in blocks)),
        list(chain.from_iterable(b.kinds for b in blocks)),
        list(chain.from_iterable([b.own] * len(b.names) for b in blocks)),
        list(chain.from_iterable(b.tensors for b in blocks)),
    )


def _forms(blocks: Sequence[Block]) -> dict[str, str]:
    return {name: form for block in blocks for name, form in block.forms.items()}


def _shapes(names: Sequence[str], tensors: Sequence[torch.Tensor]) -> list[torch.Size]:
    try:
        return list(map(_shape, tensors))
    except RuntimeError:  # one has none yet: say which
        for name, tensor in zip(names, tensors, strict=True):
            check_tensor(name, tensor)
        raise


def _addresses(tensors: list[torch.Tensor]) -> list[int]:
    tensors = dtensor.locals_of(tensors)
    try:
        return list(map(torch.Tensor.data_ptr, tensors))
    except (RuntimeError, ValueError, NotImplementedError):
        return [_address(t) for t in tensors]


def _address(tensor: torch.Tensor) -> int:
    try:
        return tensor.data_ptr()
    except (RuntimeError, ValueError, NotImplementedError):  # has no memory: refused with its name in `structure`
        return 0


def way(tensor: torch.Tensor) -> Way:
    """How a tensor sees its memory, which may change while object, address and shape stay: `t_()`, `p.data = p.data.T`.

    Strides, and whether its numbers are conjugates or negatives of those in memory.
    """
    return tensor.stride(), tensor.is_conj(), tensor.is_neg()


def check_tensor(name: str, tensor: torch.Tensor, *, own: bool = False) -> None:
    """Refuse what has no plain bytes. Raises: UnsupportedValueError."""
    reason = _why_not(tensor)
    if reason is None and own and dtensor.is_dtensor(tensor):
        reason = (
            "is a DTensor marked per_rank",
            "take the mark off: each rank saves and loads its shards; or mark x.to_local(), which has no layout",
        )
    if reason is not None:
        raise UnsupportedValueError(f"the tensor {name!r} {reason[0]}", hint=reason[1])
    if name.startswith(RESERVED) or name in ("", "__metadata__"):
        raise UnsupportedValueError(f"a tensor cannot be named {name!r}", hint="rename the key")


def _why_not(tensor: torch.Tensor) -> tuple[str, str] | None:  # noqa: PLR0911  (one per reason)
    if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
        return "has no shape yet", "run the model once before the first save or load"
    if dtensor.is_dtensor(tensor):
        return dtensor.why_not(tensor) or _why_not(dtensor.local_of(tensor))
    kind = f"{type(tensor).__module__}.{type(tensor).__qualname__}"
    if tensor.is_nested:
        return "is nested", "save its values() and offsets()"
    if tensor.layout != torch.strided:
        return f"has the layout {tensor.layout}", "save what it is made of"
    if tensor.is_quantized:
        return f"is quantized as {tensor.dtype}", "save its int_repr(), scale and zero point"
    if hasattr(tensor, "__tensor_flatten__") or not _has_own_bytes(tensor):
        return f"is a {kind}, whose bytes are not all there is to it", (
            f"holdfast.register({type(tensor).__name__}, name=..., encode=..., decode=...): encode gives plain tensors"
        )
    return None


def _has_own_bytes(tensor: torch.Tensor) -> bool:
    """Whether a subclass leaves to torch what becomes of its bytes."""
    theirs = getattr(type(tensor), "__torch_dispatch__", None)
    return theirs is None or theirs is torch.Tensor.__torch_dispatch__


def _refuse_no_memory(named: Iterable[tuple[str, torch.Tensor]]) -> None:
    for name, tensor in named:
        if tensor.is_meta:
            raise UnsupportedValueError(
                f"the tensor {name!r} is on the meta device",
                hint="materialise it (`module.to_empty(device=...)`) first",
            )
        if tensor.numel() and not _address(tensor):
            raise UnsupportedValueError(
                f"the memory of the tensor {name!r} is freed", hint="save and load where it is whole"
            )
