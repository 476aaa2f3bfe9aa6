"""Finds for everything in a live state what the checkpoint has for it, before anything is touched.

Matching a value answers a `Build`: called after all tensors were copied, it puts the value in place and returns it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import Module
from torch.optim import Optimizer

from holdfast.format.plain import TensorRef
from holdfast.trainer.differences import Differences
from holdfast.trainer.match_optimizer import match_optimizer
from holdfast.trainer.modules import loads_itself, state_dict_of
from holdfast.trainer.per_rank import PerRank
from holdfast.trainer.placing import Build, adopt, give, put, refill, replace, set_mark
from holdfast.trainer.saved import OWN_PATHS, Saved, SavedTensor
from holdfast.trainer.values import GeneratorState, dtype_name, dtype_of
from holdfast.trainer.walk import DICTS, Walk, is_stateful, rebuild

MISSING: Any = object()
"""The checkpoint has no value here."""


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
    """

    def __init__(self, saved: Saved, live: Walk, *, rank: int, world_size: int) -> None:
        self.saved = saved
        self.differences = Differences()
        self.copies: list[tuple[torch.Tensor, SavedTensor]] = []
        self.created: dict[tuple[int | None, str], torch.Tensor] = {}
        self._modules, self._optimizers = live.modules, live.optimizers
        self._rank, self._world_size = rank, world_size
        self._shared = Scope(None, saved.tree(0))
        self._used: set[tuple[int | None, str]] = set()
        self._seen_paths: set[str] = set()

    def top(self, state: dict[str, Any], keys: Iterable[str]) -> list[Build]:
        """Match these keys of the state."""
        return [partial(put, state, key, self.item(key, state[key], self._shared)) for key in keys]

    def item(self, path: str, x: Any, scope: Scope) -> Build:
        """Match what stands at a path of its own."""
        value = self._take(path, scope)
        if scope.rank is None and self.saved.is_own(path) and not isinstance(x, PerRank):
            self.differences.different.append(f"{path} (marked per_rank in the checkpoint, not here)")
        if value is MISSING and not self._has_own_path(x) and not _holds_items(x):
            self.differences.missing.append(path)
            return lambda: x
        return self.value(path, x, value, scope)

    def _take(self, path: str, scope: Scope) -> Any:
        self._seen_paths.add(path)
        return scope.tree.get(path, MISSING)

    # -- values -------------------------------------------------------------------------------------------------------
    def value(self, path: str, x: Any, value: Any, scope: Scope) -> Build:  # noqa: PLR0911  (one per kind of thing)
        """Match a live value with the saved one; what is found MISSING keeps the live value."""
        if isinstance(x, torch.Tensor):
            return self._tensor_value(path, x, value, scope)
        if isinstance(x, PerRank):
            return self._per_rank(path, x)
        if isinstance(x, Module):
            return self._module(path, x, scope)
        if isinstance(x, Optimizer):
            return self._optimizer(path, x, scope)
        if is_stateful(x):
            return self._stateful(path, x, scope)
        if value is MISSING:
            return self._kept(path, x, scope)
        if type(x) in DICTS and type(value) in DICTS:
            return self._dict(path, x, value, scope)
        if type(x) in (list, tuple) and type(value) in (list, tuple):
            return self._sequence(path, x, value, scope)
        if isinstance(x, torch.Generator) and isinstance(value, GeneratorState):
            return lambda: value.restore(x)
        if _holds_items(x):
            self.differences.different.append(f"{path} ({type(value).__name__} in the checkpoint)")
        return self.new(value, scope)

    def _tensor_value(self, path: str, x: torch.Tensor, value: Any, scope: Scope) -> Build:
        if isinstance(value, TensorRef):
            self.tensor(value.fqn, x, scope)
        elif value is MISSING:
            self.differences.missing.append(path)
        else:
            self.differences.different.append(f"{path} (a tensor here, {type(value).__name__} in the checkpoint)")
        return lambda: x

    def tensor(self, name: str, live: torch.Tensor, scope: Scope) -> None:
        """Have `live` filled from the tensor of that name."""
        found = self.use(name, scope)
        if found is None:
            self.differences.missing.append(name)
        elif (found.shape, found.dtype) != (tuple(live.shape), dtype_name(live.dtype)):
            here = f"{dtype_name(live.dtype)} {list(live.shape)}"
            self.differences.different.append(f"{name} ({here} here, {found} in the checkpoint)")
        else:
            self.copies.append((live, found))

    def use(self, name: str, scope: Scope) -> SavedTensor | None:
        """The saved tensor of that name, which now counts as expected."""
        self._used.add((scope.rank, name))
        return self.saved.find(name, scope.rank)

    def new(self, value: Any, scope: Scope) -> Build:
        """A saved value without live counterpart: its tensors are allocated."""
        if isinstance(value, TensorRef):
            found = self.use(value.fqn, scope)
            if found is None:
                self.differences.missing.append(value.fqn)
                return lambda: None
            tensor = self.create(found, scope, torch.device("cpu"))
            return lambda: tensor
        if isinstance(value, GeneratorState):
            return value.restore
        if type(value) in DICTS:
            pairs = [(k, self.new(v, scope)) for k, v in value.items()]
            return lambda: rebuild(value, [(k, build()) for k, build in pairs])
        if type(value) in (list, tuple):
            items = [self.new(v, scope) for v in value]
            return lambda: type(value)(build() for build in items)
        return lambda: value

    def create(
        self, found: SavedTensor, scope: Scope, device: torch.device, like: torch.Tensor | None = None
    ) -> torch.Tensor:
        """A tensor for what has no live counterpart, once per name; with the strides of `like` if of its shape."""
        key = (scope.rank, found.fqn)
        if key not in self.created:
            dtype = dtype_of(found.dtype)
            if like is not None and tuple(like.shape) == found.shape:
                made = torch.empty_like(like, dtype=dtype, device=device, requires_grad=False)
            else:
                made = torch.empty(found.shape, dtype=dtype, device=device)
            self.created[key] = made
            self.copies.append((made, found))
        return self.created[key]

    # -- containers ---------------------------------------------------------------------------------------------------
    def _has_own_path(self, x: Any) -> bool:
        return isinstance(x, (PerRank, Module, Optimizer, torch.Tensor)) or is_stateful(x)

    def _kept(self, path: str, x: Any, scope: Scope) -> Build:
        """What the checkpoint's container has no place for: only items and tensors in it matter."""
        if type(x) in DICTS:
            return self._dict(path, x, {}, scope)
        if type(x) in (list, tuple):
            return self._sequence(path, x, [], scope)
        return lambda: x

    def _dict(self, path: str, x: Any, value: Any, scope: Scope) -> Build:
        builds: list[tuple[Any, Build]] = []
        for key, saved in value.items():
            here = x.get(key, MISSING) if key in x else MISSING
            at = f"{path}.{key}"
            builds.append((key, self.new(saved, scope) if here is MISSING else self.value(at, here, saved, scope)))
        for key, here in x.items():
            if key not in value and (self._has_own_path(here) or _holds_items(here)):
                builds.append((key, self.value(f"{path}.{key}", here, MISSING, scope)))
        return partial(refill, x, builds)

    def _sequence(self, path: str, x: Any, value: Any, scope: Scope) -> Build:
        builds: list[Build] = []
        for i, saved in enumerate(value):
            builds.append(self.value(f"{path}.{i}", x[i], saved, scope) if i < len(x) else self.new(saved, scope))
        for i in range(len(value), len(x)):
            if self._has_own_path(x[i]) or _holds_items(x[i]):
                builds.append(self.value(f"{path}.{i}", x[i], MISSING, scope))
        if type(x) is tuple:
            return lambda: tuple(build() for build in builds)
        return partial(replace, x, builds)

    # -- items --------------------------------------------------------------------------------------------------------
    def _stateful(self, path: str, x: Any, scope: Scope) -> Build:
        value = self._take(path, scope)
        if value is MISSING:
            self.differences.missing.append(path)
            return lambda: x
        build = self.new(value, scope)

        def load() -> Any:
            give(path, x.load_state_dict, build())
            return x

        return load

    def _module(self, path: str, module: Module, scope: Scope) -> Build:
        block = self._modules.get((path, scope.rank is not None))
        if block is None or loads_itself(module):
            return self._asked_module(path, module, scope)
        for name, tensor in zip(block.names, block.tensors, strict=True):
            self.tensor(name, tensor, scope)
        return lambda: module

    def _asked_module(self, path: str, module: Module, scope: Scope) -> Build:
        """A module that wants to see a load: its tensors are filled, then it is given all of its state."""
        content, names = state_dict_of(module, path)
        saved = self._take(path, scope)
        rest: dict[str, Build] = {}
        for key, x in content.items():
            if isinstance(x, torch.Tensor):
                self.tensor(names[key], x, scope)
            elif isinstance(saved, dict) and names[key] in saved:
                rest[key] = self.new(saved[names[key]], scope)
            else:
                self.differences.missing.append(names[key])

        def load() -> Any:
            for key, x in content.items():
                content[key] = rest[key]() if key in rest else x.detach() if isinstance(x, torch.Tensor) else x
            give(path, module.load_state_dict, content)
            return module

        return load

    def _optimizer(self, path: str, optimizer: Optimizer, scope: Scope) -> Build:
        saved = self._take(path, scope)
        if saved is MISSING:
            self.differences.missing.append(path)
            return lambda: optimizer
        named = self._optimizers[path, scope.rank is not None].named
        return match_optimizer(self, named, saved, scope)

    # -- per rank -----------------------------------------------------------------------------------------------------
    def _per_rank(self, path: str, mark: PerRank) -> Build:
        if not self.saved.is_own(path):
            build = self.item(path, mark.value, self._shared)
        elif self.saved.world_size == self._world_size:
            build = self.item(path, mark.value, Scope(self._rank, self.saved.tree(self._rank)))
        else:
            build = self._resized(path, mark)
        return partial(set_mark, mark, build)

    def _resized(self, path: str, mark: PerRank) -> Build:
        before, now = self.saved.world_size, self._world_size
        self._seen_paths.add(path)
        policy = mark.on_resize
        if policy == "error" or (isinstance(mark.value, (Module, Optimizer)) and policy != "drop"):
            self.differences.different.append(
                f"{path} (per_rank, saved by {before} ranks, now {now}: say what to do with on_resize)"
            )
        if not callable(policy) or isinstance(mark.value, (Module, Optimizer)):
            return lambda: mark.value
        scopes = [Scope(rank, self.saved.tree(rank)) for rank in range(before)]
        parts = [self.new(scope.tree.get(path), scope) for scope in scopes]
        return lambda: adopt(path, mark.value, give(path, policy, [b() for b in parts], self._rank, now))

    # -- the rest -----------------------------------------------------------------------------------------------------
    def note_unexpected(self, only: Collection[str] | None) -> None:
        """Names of the checkpoint that nothing in the state asked for."""
        wanted = partial(_below, only)
        names = [n for n in (*self.saved.shared, *self.saved.aliases) if (None, n) not in self._used]
        own = self.saved.own.get(self._rank, {}) if self.saved.world_size == self._world_size else {}
        names += [n for n in own if (self._rank, n) not in self._used]
        paths = [p for p in self.saved.shared_paths() if p not in self._seen_paths]
        paths += [p for p in self.saved.tree(0).get(OWN_PATHS, []) if p not in self._seen_paths]
        found = dict.fromkeys(n for n in (*names, *paths) if wanted(n))
        self.differences.unexpected += list(found)


def _below(only: Collection[str] | None, name: str) -> bool:
    return only is None or any(name == key or name.startswith(f"{key}.") for key in only)


def _holds_items(x: Any) -> bool:
    """Whether a container has tensors or items with a path of their own somewhere in it."""
    inner = x.values() if type(x) in DICTS else x if type(x) in (list, tuple) else ()
    return any(
        isinstance(v, (torch.Tensor, PerRank, Module, Optimizer)) or is_stateful(v) or _holds_items(v) for v in inner
    )
