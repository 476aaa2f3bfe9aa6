"""Finds for everything in a live state what the checkpoint has for it, before anything is touched.

Matching a value answers a `Build`: called after all tensors were copied, it puts the value in place and returns it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, cast

import torch
from torch.nn import Module
from torch.optim import Optimizer

from holdfast.format.nested import DICTS, rebuild
from holdfast.format.plain import Opaque, TensorRef
from holdfast.trainer import dtensor
from holdfast.trainer.differences import MARKED, Differences
from holdfast.trainer.encoders import by_tag
from holdfast.trainer.forms import Form
from holdfast.trainer.match_containers import holds_items, is_more, match_dict, match_kept, match_sequence
from holdfast.trainer.match_module import match_module
from holdfast.trainer.match_optimizer import match_optimizer
from holdfast.trainer.match_part import match_part
from holdfast.trainer.match_parts import match_parts, new_parts, same_parts
from holdfast.trainer.match_per_rank import match_per_rank
from holdfast.trainer.match_stateful import match_stateful
from holdfast.trainer.parts import is_simple, parts_of
from holdfast.trainer.per_rank import PerRank
from holdfast.trainer.placing import MISSING, Build, give, put
from holdfast.trainer.saved import OWN_PATHS, Saved, SavedTensor
from holdfast.trainer.selection import Selection
from holdfast.trainer.values import GeneratorState, dtype_name, dtype_of, form_of
from holdfast.trainer.walk import Walk, is_stateful

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Scope:
    """Where names are looked up: the shared part (`rank` None), or what a rank saved as its own."""

    rank: int | None
    tree: Mapping[str, Any]


class Matcher:
    """Walks the live state beside the saved one, collecting copies to make and differences.

    Attributes:
        copies: (live tensor, what it gets).
        created: tensors allocated for what has no live counterpart, by rank of the scope and name.
        unfit: ids of live tensors that the checkpoint has nothing for; their optimizer state is not taken either.
        modules, optimizers: what was found of them in the live state, by (path, whether within per_rank).
        laid_out: DTensors that objects with a state of their own will take back, by name.
        first: what to do before anything is put in place: tensors made anew are copied over live ones.
    """

    def __init__(
        self, saved: Saved, live: Walk, *, rank: int, world_size: int, selection: Selection | None = None
    ) -> None:
        self.saved = saved
        self.selection = selection if selection is not None else Selection(None)
        self.differences = Differences()
        self.unfit: set[int] = set()
        self.copies: list[tuple[torch.Tensor, SavedTensor]] = []
        self.created: dict[tuple[int | None, str], torch.Tensor] = {}
        self.first: list[Build] = []
        self.laid_out: dict[str, torch.Tensor] = {}
        self.modules, self.optimizers = live.modules, live.optimizers
        self.rank, self.world_size = rank, world_size
        self._used: set[tuple[int | None, str]] = set()
        self._seen_paths: set[str] = set()
        self._fitting = 0
        self._late: list[Callable[[], None]] = []

    @cached_property
    def shared(self) -> Scope:
        """Where what is not marked per_rank is looked up."""
        return Scope(None, self.saved.tree(0))

    def scope_of(self, rank: int) -> Scope:
        """Where what a rank saved as its own is looked up."""
        return Scope(rank, self.saved.tree(rank))

    def top(self, state: dict[str, Any]) -> list[Build]:
        """Match what is asked for of the state."""
        keys = [key for key in state if self.selection.reaches(key)]
        builds: list[Build] = [partial(put, state, key, self.item(key, state[key], self.shared)) for key in keys]
        for match in self._late:
            match()
        self.selection.require([*self._seen_paths, *(name for _, name in self._used), *state])
        return builds

    @property
    def fits(self) -> bool:
        """Whether anything of the checkpoint has a place in the state; where that has tensors, at least one of them."""
        return bool(self.copies) or (self._fitting > 0 and not self.unfit)

    def item(self, path: str, x: Any, scope: Scope) -> Build:
        """Match what stands at a path of its own."""
        value = self.take(path, scope)
        if scope.rank is None and self.saved.is_own(path) and not isinstance(x, PerRank):
            self.differences.note("other", path, "not marked per_rank", MARKED)
            # Not told a second time, as only in the checkpoint.
            self._used |= {(self.rank, name) for name in self.saved.own.get(self.rank, ()) if _below(path, name)}
            return lambda: x
        if value is MISSING and not is_more(x):
            self.differences.note("missing", path, form_of(x))
            return lambda: x
        return self.value(path, x, value, scope)

    def take(self, path: str, scope: Scope) -> Any:
        """What was saved at a path of its own, which now counts as seen; MISSING when nothing was."""
        self._seen_paths.add(path)
        value = scope.tree.get(path, MISSING)
        self._fitting += value is not MISSING and not isinstance(value, TensorRef)
        return value

    # -- values -------------------------------------------------------------------------------------------------------
    def value(self, path: str, x: Any, value: Any, scope: Scope) -> Build:  # noqa: PLR0911  (one per kind of thing)
        """Match a live value with the saved one; what is found MISSING keeps the live value."""
        if isinstance(x, torch.Tensor):
            return self._tensor_value(path, x, value, scope)
        if isinstance(x, PerRank):
            return match_per_rank(self, path, x)
        if isinstance(x, Module):
            return match_module(self, path, x, scope)
        if isinstance(x, Optimizer):
            return self._optimizer(path, x, scope)
        if is_stateful(x):
            return match_stateful(self, path, x, scope)
        if not self.selection.takes(path):
            return match_part(self, path, x, value, scope)
        if value is MISSING:
            return match_kept(self, path, x, scope)
        if type(x) in DICTS and type(value) in DICTS:
            return match_dict(self, path, x, value, scope)
        if type(x) in (list, tuple) and type(value) in (list, tuple):
            return match_sequence(self, path, x, value, scope)
        if isinstance(x, torch.Generator) and isinstance(value, GeneratorState):
            return self._generator(path, x, value)
        if holds_items(x):
            self.differences.note("other", path, f"a {type(x).__name__} of tensors or items", form_of(value))
            return lambda: x
        return self.new(value, scope)

    def _generator(self, path: str, x: torch.Generator, value: GeneratorState) -> Build:
        if x.device.type != torch.device(value.device).type:
            self.differences.note("other", path, f"a generator of {x.device}", f"one of {value.device}")
            return lambda: x
        return lambda: value.restore(x)

    def _tensor_value(self, path: str, x: torch.Tensor, value: Any, scope: Scope) -> Build:
        if isinstance(value, TensorRef):
            self.tensor(value.fqn, x, scope)
        else:
            self.unfit.add(id(x))
            if value is MISSING:
                self.differences.note("missing", path, form_of(x))
            else:
                self.differences.note("other", path, "a tensor", form_of(value))
        return lambda: x

    def tensor(self, name: str, live: torch.Tensor, scope: Scope) -> None:
        """Have `live` filled from the tensor of that name."""
        if not self.selection.takes(name):
            return
        parts = None if is_simple(live) else parts_of(name, live)
        if parts is not None:
            if not match_parts(self, name, live, parts, scope):
                self.unfit.add(id(live))
            return
        found = self.use(name, scope)
        if found is None and (form := self.saved.forms(scope.rank).get(name)) is not None:
            self.same_form(name, live, form)
            self.unfit.add(id(live))
            return
        if found is not None and self.same_form(name, live, found):
            self.copies.append((live, found))
            return
        self.unfit.add(id(live))
        if found is None:
            self.differences.note("missing", name, form_of(live))

    def same_form(self, name: str, live: torch.Tensor, found: SavedTensor | Form) -> bool:
        """Whether shape and dtype are the same; else that is noted."""
        parts = None if is_simple(live) else parts_of(name, live)
        if parts is not None or isinstance(found, Form):
            return same_parts(self, name, form_of(live) if parts is None else parts.form, found)
        if found.shape != tuple(live.shape):
            self.differences.note("shape", name, form_of(live), str(found))
        elif found.dtype != dtype_name(live.dtype):
            self.differences.note("dtype", name, form_of(live), str(found))
        else:
            return True
        return False

    def use(self, name: str, scope: Scope) -> SavedTensor | None:
        """The saved tensor of that name, which now counts as expected."""
        self._used.add((scope.rank, name))
        return self.saved.find(name, scope.rank)

    def new(self, value: Any, scope: Scope, device: torch.device = _CPU) -> Build:
        """A saved value without live counterpart: its tensors are allocated.

        Raises: StructureError: it is of a type that is not registered here. LoadError: a generator of a device that is
            not here. CorruptError.
        """
        if isinstance(value, TensorRef):
            return self._new_tensor(value.fqn, scope, device)
        if isinstance(value, Opaque):
            taught, inner = by_tag(value), self.new(value.value, scope, device)
            return lambda: give(taught.name, cast("Build", taught.decode), inner())
        if isinstance(value, GeneratorState):
            generator = value.restore()  # now: its device may not be here
            return lambda: generator
        if type(value) in DICTS:
            pairs = [(k, self.new(v, scope, device)) for k, v in value.items()]
            return lambda: rebuild(value, [(k, build()) for k, build in pairs])
        if type(value) in (list, tuple):
            items = [self.new(v, scope, device) for v in value]
            return lambda: type(value)(build() for build in items)
        return lambda: value

    def _new_tensor(self, name: str, scope: Scope, device: torch.device) -> Build:
        if name in self.saved.forms(scope.rank):
            return new_parts(self, name, scope, device)
        found = self.use(name, scope)
        if found is None:
            self.differences.note("missing", name)
            return lambda: None
        live = self.laid_out.get(name)
        if live is not None:
            if self.same_form(name, live, found):
                self.copies.append((live, found))
            return lambda: live
        tensor = self.create(found, scope, device)
        return lambda: tensor

    def create(
        self, found: SavedTensor, scope: Scope, device: torch.device, like: torch.Tensor | None = None
    ) -> torch.Tensor:
        """A tensor for what has no live counterpart, once per name; with the strides of `like` if of its shape, and
        on the mesh of `like` if that is a DTensor."""
        key = (scope.rank, found.fqn)
        if key not in self.created:
            dtype = dtype_of(found.dtype)
            if like is not None and dtensor.is_dtensor(like):
                made = dtensor.entry_like(like, found.shape, dtype, device)
            elif like is not None and tuple(like.shape) == found.shape:
                made = torch.empty_like(like, dtype=dtype, device=device, requires_grad=False)
            else:
                made = torch.empty(found.shape, dtype=dtype, device=device)
            self.created[key] = made
            self.copies.append((made, found))
        return self.created[key]

    # -- items --------------------------------------------------------------------------------------------------------
    def _optimizer(self, path: str, optimizer: Optimizer, scope: Scope) -> Build:
        saved = self.take(path, scope)
        if not self.selection.takes(path):
            raise self.selection.whole(path, "the optimizer")
        if saved is MISSING:
            self.differences.note("missing", path, form_of(optimizer))
            return lambda: optimizer
        named = self.optimizers[path, scope.rank is not None].named
        matched: list[Build] = []
        # Last: the state of a parameter is taken only with the parameter, whose module may stand behind.
        self._late.append(lambda: matched.append(match_optimizer(self, named, saved, scope)))
        return lambda: matched[0]()  # noqa: PLW0108  it is not matched yet

    # -- the rest -----------------------------------------------------------------------------------------------------
    def seen(self, path: str) -> None:
        """What the checkpoint has at this path is expected."""
        self._seen_paths.add(path)

    def note_unexpected(self) -> None:
        """Names of the checkpoint that nothing in the state asked for."""
        names = [n for n in (*self.saved.shared, *self.saved.aliases) if (None, n) not in self._used]
        own = self.saved.own.get(self.rank, {}) if self.saved.world_size == self.world_size else {}
        names += [n for n in own if (self.rank, n) not in self._used]
        paths = [p for p in self.saved.shared_paths() if p not in self._seen_paths]
        paths += [p for p in self.saved.tree(0).get(OWN_PATHS, []) if p not in self._seen_paths]
        for name in dict.fromkeys(n for n in (*names, *paths) if self.selection.takes(n)):
            self.differences.note("unexpected", name, there=str(self.saved.find(name, None) or ""))


def _below(path: str, name: str) -> bool:
    return name == path or name.startswith(f"{path}.")
