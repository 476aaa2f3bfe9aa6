"""Tensors of a module by name, without `state_dict()` where that would say the same.

`Module.state_dict()` of a large model takes longer than all else a save does, and hands out new tensor objects. A
module without hooks, extra state or methods of its own is read from its dicts directly; any other is asked for its
`state_dict(keep_vars=True)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch.nn import Module
from torch.nn.parallel import DataParallel, DistributedDataParallel

from holdfast.trainer.structure import Kind

_WRAPPED = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})
_SAVING = ("state_dict", "_save_to_state_dict", "get_extra_state")
_LOADING = ("load_state_dict", "set_extra_state")


class Block:
    """Tensors found together, as parallel lists. `own`: marked `per_rank`."""

    def __init__(self, own: bool) -> None:
        self.own = own
        self.names: list[str] = []
        self.tensors: list[torch.Tensor] = []
        self.kinds: list[Kind] = []

    def add(self, name: str, tensor: torch.Tensor, kind: Kind) -> None:
        self.names.append(name)
        self.tensors.append(tensor)
        self.kinds.append(kind)


class Watch:
    """Whether the same objects still stand in the same dicts and lists, at the cost of one pass in C."""

    def __init__(self, views: Iterable[Iterable[Any]]) -> None:
        self._views = list(views)  # dict views follow their dict
        self._seen = list(chain.from_iterable(self._views))

    def unchanged(self) -> bool:
        now = list(chain.from_iterable(self._views))
        return len(now) == len(self._seen) and all(map(is_, now, self._seen))


class PlainModule(Block):
    """A module read from its dicts. Valid while `unchanged()`; holding it keeps the module alive."""

    def __init__(self, path: str, module: Module, own: bool) -> None:
        super().__init__(own)
        self.path = path
        self.module = module
        self.parts = list(named_modules(module, path))
        for _, name, part in self.parts:
            self._read(name, part)
        self._watch = Watch(view for _, _, part in self.parts for view in _views(part))

    def _read(self, name: str, part: Module) -> None:
        for key, parameter in part._parameters.items():
            if parameter is not None:
                self.add(join(name, key), parameter, "parameter")
        for key, buffer in part._buffers.items():
            if buffer is not None and key not in part._non_persistent_buffers_set:
                self.add(join(name, key), buffer, "buffer")

    def unchanged(self) -> bool:
        return self._watch.unchanged()


def _views(part: Module) -> Iterator[Iterable[Any]]:
    for content in (part._parameters, part._buffers, part._modules):
        yield content.keys()
        yield content.values()
    yield part._non_persistent_buffers_set
    # A hook that is registered later shows as a new key here, and the module is no longer plain.
    yield part._state_dict_hooks.keys()
    yield part._state_dict_pre_hooks.keys()


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


def is_plain(module: Module) -> bool:
    """Whether `state_dict()` would list parameters and buffers and nothing else."""
    return not any(m._state_dict_hooks or m._state_dict_pre_hooks or _overrides(m, _SAVING) for m in module.modules())


def loads_itself(module: Module) -> bool:
    """Whether a load must go through `load_state_dict()`: hooks or methods want to see it."""
    return not is_plain(module) or any(
        m._load_state_dict_pre_hooks or m._load_state_dict_post_hooks or _overrides(m, _LOADING)
        for m in module.modules()
    )


def _overrides(module: Module, methods: Iterable[str]) -> bool:
    kind = type(module)
    return any(getattr(kind, n) is not getattr(Module, n) or n in module.__dict__ for n in methods)


def state_dict_of(module: Module, path: str) -> tuple[dict[str, Any], dict[str, str]]:
    """`state_dict(keep_vars=True)` of a module that is not plain, and our name of each of its keys."""
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
