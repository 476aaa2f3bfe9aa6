"""Tensors of a module by name, without `state_dict()` where that would say the same.

`Module.state_dict()` of a large model takes longer than all else a save does, and hands out new tensor objects. A
module without hooks, extra state or methods of its own is read from its dicts directly; any other is asked for its
`state_dict(keep_vars=True)`. Hooks of torch's own wrappers, of which it is known what they do, do not count: those of
FSDP2 put its sharded parameters back into the module, and are called here as `state_dict` would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from operator import is_
from typing import Any, NamedTuple

import torch
from torch.nn import Module
from torch.nn.parallel import DataParallel, DistributedDataParallel

from holdfast.errors import UnsupportedValueError
from holdfast.trainer.forms import form_text
from holdfast.trainer.parts import Parts, is_simple, parts_of
from holdfast.trainer.structure import Kind

Container = dict[Any, Any] | list[Any] | set[Any]

_WRAPPED = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})
_SAVING = ("state_dict", "_save_to_state_dict", "get_extra_state")
_LOADING = ("load_state_dict", "set_extra_state")
_FSDP2 = "torch.distributed.fsdp._fully_shard."
_KNOWN_HOOKS = (_FSDP2, "torch.distributed.algorithms._checkpoint.checkpoint_wrapper")
_FSDP1 = "torch.distributed.fsdp.fully_sharded_data_parallel"


class Composite(NamedTuple):
    """A tensor that is stored as several."""

    name: str
    tensor: torch.Tensor
    kind: Kind
    parts: Parts


class Block:
    """Tensors found together, as parallel lists. `own`: marked `per_rank`.

    Of a tensor that is stored as several the lists have the parts; `forms` has what makes it, by name of the first one.
    """

    def __init__(self, own: bool) -> None:
        self.own = own
        self.names: list[str] = []
        self.tensors: list[torch.Tensor] = []
        self.kinds: list[Kind] = []
        self.forms: dict[str, str] = {}
        self.composites: list[Composite] = []

    def add(self, name: str, tensor: torch.Tensor, kind: Kind) -> None:
        """Raises: UnsupportedValueError: it cannot be taken apart."""
        parts = None if is_simple(tensor) else parts_of(name, tensor)
        if parts is None:
            self._put(name, tensor, kind)
            return
        self.composites.append(Composite(name, tensor, kind, parts))
        self.forms[f"{name}.{next(parts.form.leaves())}"] = form_text(name, tensor, parts.form)
        for leaf, part in parts.tensors.items():
            self._put(f"{name}.{leaf}", part, kind)

    def items(self) -> Iterator[tuple[str, torch.Tensor, Kind]]:
        """The tensors as the user has them: one that is stored as several is one."""
        parts = {f"{c.name}.{leaf}" for c in self.composites for leaf in c.parts.tensors}
        for name, tensor, kind in zip(self.names, self.tensors, self.kinds, strict=True):
            if name not in parts:
                yield name, tensor, kind
        yield from (composite[:3] for composite in self.composites)

    def follow_parts(self) -> bool:
        """Take the parts of tensors that are stored as several as they are now: sparse ones make new ones when asked.

        False: they are named otherwise now, or make their tensor in another way.
        """
        return all(self._follow(i, c) for i, c in enumerate(self.composites))

    def _follow(self, place: int, before: Composite) -> bool:
        now = parts_of(before.name, before.tensor)
        if now is None or before.parts.same(now):
            return now is not None
        first = f"{before.name}.{next(now.form.leaves())}"
        same_names = list(now.tensors) == list(before.parts.tensors)
        if not same_names or form_text(before.name, before.tensor, now.form) != self.forms.get(first):
            return False
        at = self.names.index(first)  # parts stand together
        self.tensors[at : at + len(now.tensors)] = now.tensors.values()
        self.composites[place] = before._replace(parts=now)
        return True

    def _put(self, name: str, tensor: torch.Tensor, kind: Kind) -> None:
        self.names.append(name)
        self.tensors.append(tensor)
        self.kinds.append(kind)


class Watch:
    """Whether the same objects still stand in the same dicts and lists, at the cost of two passes in C.

    Args:
        find: finds the containers anew: they can be replaced themselves, as `Optimizer.load_state_dict` does.
    """

    def __init__(self, find: Callable[[], Iterable[Container]]) -> None:
        self._find = find
        self._containers = list(find())
        # Views follow their dict.
        self._views = [v for c in self._containers for v in ((c.keys(), c.values()) if isinstance(c, dict) else (c,))]
        self._seen = list(chain.from_iterable(self._views))

    def unchanged(self) -> bool:
        return identical(self._find(), self._containers) and identical(chain.from_iterable(self._views), self._seen)


def identical(now: Iterable[Any], before: Sequence[Any]) -> bool:
    """Whether these are the same objects in the same order."""
    found = list(now)
    return len(found) == len(before) and all(map(is_, found, before))


class PlainModule(Block):
    """A module read from its dicts. Valid while `unchanged()`; holding it keeps the module alive."""

    def __init__(self, path: str, module: Module, own: bool) -> None:
        super().__init__(own)
        self.path = path
        self.module = module
        self.parts = list(named_modules(module, path))
        _put_sharded_back(self.parts)
        for _, name, part in self.parts:
            self._read(name, part)
        self._modules = [part for _, _, part in self.parts]
        self._classes = list(map(type, self._modules))
        self._watch = Watch(partial(_containers, self._modules))

    def _read(self, name: str, part: Module) -> None:
        for key, parameter in part._parameters.items():
            if parameter is not None:
                self.add(join(name, key), parameter, "parameter")
        for key, buffer in part._buffers.items():
            if buffer is not None and key not in part._non_persistent_buffers_set:
                self.add(join(name, key), buffer, "buffer")

    def unchanged(self) -> bool:
        return identical(map(type, self._modules), self._classes) and self._watch.unchanged() and self.follow_parts()


def _containers(parts: Sequence[Module]) -> Iterable[Container]:
    """What says which tensors modules have. A hook that is registered later shows too: they are plain no longer."""
    return chain(
        [m._parameters for m in parts],
        [m._buffers for m in parts],
        [m._modules for m in parts],
        [m._non_persistent_buffers_set for m in parts],
        [m._state_dict_hooks for m in parts],
        [m._state_dict_pre_hooks for m in parts],
    )


def join(path: str, key: object) -> str:
    """A name one level deeper."""
    return f"{path}.{key}" if path else str(key)


def named_modules(module: Module, path: str, raw: str = "") -> Iterator[tuple[str, str, Module]]:
    """(name as torch gives it, our name, module) of it and all below it; a shared one under each of its names.

    Our name begins with `path` and leaves out what wrappers put in between.
    """
    yield raw, path, module
    for key, child in module._modules.items():
        if child is not None:
            name = path if _is_wrapper(module, key) else join(path, key)
            yield from named_modules(child, name, join(raw, key))


def _is_wrapper(module: Module, key: str) -> bool:
    return key in _WRAPPED or (key == "module" and isinstance(module, (DataParallel, DistributedDataParallel)))


def _put_sharded_back(parts: Sequence[tuple[str, str, Module]]) -> None:
    """Have FSDP2 register its sharded parameters if a forward pass left gathered ones there; their memory is freed.

    Only the sharded ones are trained; the next forward pass gathers them again.

    Raises: UnsupportedValueError: they are gathered still.
    """
    for _, _, part in parts:
        for hook in part._state_dict_pre_hooks.values():
            if _module_of(hook).startswith(_FSDP2):
                hook(part, "", True)
    # Afterwards: the hook may stand at a module below the one that was sharded.
    gathered = next((name for _, name, part in parts if _is_gathered(part)), None)
    if gathered is not None:
        raise UnsupportedValueError(
            f"the parameters of {gathered!r} are gathered, and FSDP2 does not give the sharded ones back",
            hint="save and load between steps, or call reshard() on the module before",
        )


def _is_gathered(part: Module) -> bool:
    if not hasattr(type(part), "_get_fsdp_state"):
        return False
    state = part._get_fsdp_state()  # type: ignore[operator]  # FSDP2 has no public way to ask
    groups = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
    return not all(getattr(group, "is_sharded", True) for group in groups)


def is_plain(module: Module) -> bool:
    """Whether `state_dict()` would list parameters and buffers and nothing else."""
    return not any(
        _strange(m._state_dict_hooks) or _strange(m._state_dict_pre_hooks) or _overrides(m, _SAVING)
        for m in module.modules()
    )


def loads_itself(module: Module) -> bool:
    """Whether a load must go through `load_state_dict()`: hooks or methods want to see it."""
    return not is_plain(module) or any(
        _strange(m._load_state_dict_pre_hooks) or _strange(m._load_state_dict_post_hooks) or _overrides(m, _LOADING)
        for m in module.modules()
    )


def _strange(hooks: Mapping[int, Callable[..., Any]]) -> bool:
    """Whether some hook may do what nobody here knows."""
    return any(not _module_of(hook).startswith(_KNOWN_HOOKS) for hook in hooks.values())


def _module_of(hook: Callable[..., Any]) -> str:
    return str(getattr(getattr(hook, "hook", hook), "__module__", ""))


def _overrides(module: Module, methods: Iterable[str]) -> bool:
    kind = type(module)
    return any(getattr(kind, n) is not getattr(Module, n) or n in module.__dict__ for n in methods)


def state_dict_of(module: Module, path: str) -> tuple[dict[str, Any], dict[str, str]]:
    """`state_dict(keep_vars=True)` of a module that is not plain, and our name of each of its keys.

    Raises: UnsupportedValueError: it is wrapped by FSDP1, which gathers in `state_dict()`, on all ranks or never.
    """
    if any(kind.__module__ == _FSDP1 for m in module.modules() for kind in type(m).__mro__):
        raise UnsupportedValueError(
            f"{path!r} is wrapped by FullyShardedDataParallel",
            hint="shard it with torch.distributed.fsdp.fully_shard (FSDP2)",
        )
    content = module.state_dict(keep_vars=True)
    names = {raw: name for raw, name, _ in named_modules(module, path)}
    return content, {key: _name_of(key, names) for key in content}


def _name_of(key: str, names: dict[str, str]) -> str:
    """By the deepest module the key lies in: wrappers' own hooks may have left out a part of it already."""
    head = key.rpartition(".")[0]
    while head not in names:
        head = head.rpartition(".")[0]
    return join(names[head], key[len(head) + 1 :] if head else key)


def named_parameters(module: Module, path: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter under each of its names."""
    for _, name, part in named_modules(module, path):
        for key, parameter in part._parameters.items():
            if parameter is not None:
                yield join(name, key), parameter
