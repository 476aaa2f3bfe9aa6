"""One pass over a state: which module, optimizer, tensor or value stands where, and under which name.

A name is the path of keys joined by dots. Items with a life of their own (modules, optimizers, objects with a
`state_dict`, `per_rank` marks) stand under their own path; in the value of the container around them they are left
out of a dict, and None in a list.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.nn import Module
from torch.optim import Optimizer

from holdfast.errors import HoldfastError, UnsupportedValueError, UsageError
from holdfast.format.nested import DICTS, rebuild
from holdfast.format.plain import MAX_DEPTH, Opaque, TensorRef
from holdfast.trainer import encoders
from holdfast.trainer.modules import Block, PlainModule, is_plain, named_parameters, state_dict_of
from holdfast.trainer.optimizers import Named, OptimizerBlock, Origin
from holdfast.trainer.per_rank import PerRank
from holdfast.trainer.structure import Kind
from holdfast.trainer.twin import forecast

ELSEWHERE: Any = object()
"""What a value is in its container when it stands under a path of its own."""

_LEAVES = frozenset({type(None), bool, int, float, str, bytes})
Where = tuple[str, bool]
"""(path, whether below a `per_rank` mark)"""


def is_stateful(x: object) -> bool:
    """Whether it gives and takes its state itself."""
    return (
        not isinstance(x, type)
        and encoders.of(type(x)) is None
        and callable(getattr(x, "state_dict", None))
        and callable(getattr(x, "load_state_dict", None))
    )


def _ask(path: str, method: Callable[[], Any], what: str = "give its state_dict()") -> Any:
    """Call code of the user's. Raises: UnsupportedValueError with the path, whatever it raises."""
    try:
        return method()
    except HoldfastError:
        raise
    except Exception as e:
        raise UnsupportedValueError(f"{path!r} cannot {what}: {type(e).__name__}: {e}") from e


class Walk:
    """What one pass found. Blocks come in a fixed order: modules, what stands loose, optimizers.

    Args:
        modules, optimizers: blocks of the last pass, used again where they still hold.
        foretell: take in the optimizer state that the first step will create.
        ask: have objects with a `state_dict` give it; a load has no use for it, and some take long.
    """

    def __init__(
        self,
        modules: Mapping[Where, PlainModule],
        optimizers: Mapping[Where, OptimizerBlock],
        *,
        foretell: bool = False,
        ask: bool = True,
    ) -> None:
        self._old_modules, self._old_optimizers = modules, optimizers
        self._foretell, self._ask = foretell, ask
        self.modules: dict[Where, PlainModule] = {}
        self.optimizers: dict[Where, OptimizerBlock] = {}
        self.tree: dict[str, Any] = {}
        self.own_tree: dict[str, Any] = {}
        self.own_paths: list[str] = []
        self._loose = {False: Block(False), True: Block(True)}
        self._other_modules: list[tuple[str, Module]] = []
        self._late: list[tuple[str, Optimizer, bool]] = []
        self._open: list[int] = []
        self._encoding: list[str] = []

    def run(self, state: Mapping[str, Any]) -> Walk:
        """Raises: UnsupportedValueError, UsageError."""
        if not isinstance(state, dict):
            raise UsageError(f"the state is a {type(state).__name__}", hint='pass a dict: {"model": model, ...}')
        for key, x in state.items():
            if type(key) is not str or not key:
                raise UsageError(f"the state has the key {key!r}", hint="keys of the state are non-empty strings")
            self._put(key, self._value(key, x, own=False), own=False)
        self._finish_optimizers()
        return self

    @property
    def blocks(self) -> list[Block]:
        return [*self.modules.values(), *self._loose.values(), *self.optimizers.values()]

    # -- values -------------------------------------------------------------------------------------------------------
    def _put(self, path: str, value: Any, *, own: bool) -> None:
        if value is ELSEWHERE:
            return
        if path in self.tree or path in self.own_tree:
            raise UnsupportedValueError(f"two things in the state have the path {path!r}", hint="rename a key")
        (self.own_tree if own else self.tree)[path] = value

    def _value(self, path: str, x: Any, own: bool, kind: Kind = "other") -> Any:  # noqa: PLR0911  (one per kind of thing)
        if type(x) in _LEAVES:
            return x
        if isinstance(x, torch.Tensor):
            self._loose[own].add(path, x, "parameter" if isinstance(x, torch.nn.Parameter) else kind)
            return TensorRef(path)
        if isinstance(x, PerRank):
            self._refuse_encoded(path, x)
            return self._per_rank(path, x, own)
        if isinstance(x, Module):
            self._refuse_encoded(path, x)
            return self._module(path, x, own)
        if isinstance(x, Optimizer):
            self._refuse_encoded(path, x)
            self._late.append((path, x, own))
            return ELSEWHERE
        taught = encoders.of(type(x))
        if taught is not None:
            return self._encoded(path, x, own, kind, taught)
        if is_stateful(x):
            self._refuse_encoded(path, x)
            if not self._ask:
                return ELSEWHERE
            self._put(path, self._nested(path, x, own, kind, _ask(path, x.state_dict)), own=own)
            return ELSEWHERE
        if type(x) in DICTS or type(x) in (list, tuple):
            return self._nested(path, x, own, kind, x)
        return x

    def _nested(self, path: str, x: Any, own: bool, kind: Kind, content: Any) -> Any:
        """`content`, which belongs to `x`, as a plain value."""
        if id(x) in self._open:
            raise UnsupportedValueError(f"{path!r} contains itself", hint="break the cycle")
        if len(self._open) > MAX_DEPTH:
            raise UnsupportedValueError(f"{path!r} is nested more than {MAX_DEPTH} deep", hint="flatten it")
        self._open.append(id(x))
        try:
            if content is not x:
                return self._value(path, content, own, kind)
            if _LEAVES.issuperset(map(type, x.values() if type(x) in DICTS else x)):
                return copy.copy(x)
            if type(x) in (list, tuple):
                items = [self._value(f"{path}.{i}", item, own, kind) for i, item in enumerate(x)]
                return type(x)(None if item is ELSEWHERE else item for item in items)
            pairs = [(key, self._value(f"{path}.{key}", item, own, kind)) for key, item in x.items()]
            return rebuild(x, (pair for pair in pairs if pair[1] is not ELSEWHERE))
        finally:
            self._open.pop()

    def _encoded(self, path: str, x: Any, own: bool, kind: Kind, taught: encoders.Taught) -> Any:
        """A value of a registered type, as what its `encode` gives."""
        if not self._ask:
            return ELSEWHERE
        if taught.encode is None:
            raise UnsupportedValueError(f"{path!r} is registered without encode", hint="register it with one")
        content = _ask(path, partial(taught.encode, x), f"be encoded as {taught.name!r}")
        if content is x:
            raise UnsupportedValueError(
                f"encode of {taught.name!r} gave {path!r} back as it was", hint="give its content"
            )
        self._encoding.append(taught.name)
        try:
            return Opaque(taught.tag, self._nested(path, x, own, kind, content))
        finally:
            self._encoding.pop()

    def _refuse_encoded(self, path: str, x: Any) -> None:
        """What has a state of its own cannot be made anew by a `decode`."""
        if self._encoding:
            raise UnsupportedValueError(
                f"encode of {self._encoding[-1]!r} gave a {type(x).__qualname__} at {path!r}",
                hint="give plain values and tensors, such as its state_dict()",
            )

    def _per_rank(self, path: str, mark: PerRank, own: bool) -> Any:
        if own:
            raise UnsupportedValueError(f"{path!r} is marked per_rank inside of a per_rank value", hint="mark it once")
        self.own_paths.append(path)
        self._put(path, self._value(path, mark.value, own=True), own=True)
        return ELSEWHERE

    # -- modules ------------------------------------------------------------------------------------------------------
    def _module(self, path: str, module: Module, own: bool) -> Any:
        where = (path, own)
        if where in self.modules:
            raise UnsupportedValueError(f"two modules in the state have the path {path!r}", hint="rename a key")
        block = self._old_modules.get(where)
        if block is not None and block.module is module and block.unchanged():
            self.modules[where] = block
        elif is_plain(module):
            self.modules[where] = PlainModule(path, module, own)
        else:
            self._asked_module(path, module, own)
        return ELSEWHERE

    def _asked_module(self, path: str, module: Module, own: bool) -> None:
        """A module that says itself what its state is."""
        self._other_modules.append((path, module))
        content, names = _ask(path, lambda: state_dict_of(module, path))
        parameters = {id(p) for p in module.parameters()}
        rest: dict[str, Any] = {}
        for key, x in content.items():
            if isinstance(x, torch.Tensor):
                self._loose[own].add(names[key], x, "parameter" if id(x) in parameters else "buffer")
            else:
                rest[names[key]] = self._value(names[key], x, own)
        if rest:
            self._put(path, rest, own=own)

    # -- optimizers ---------------------------------------------------------------------------------------------------
    def _finish_optimizers(self) -> None:
        """Last, because parameters are named by modules that may stand behind their optimizer in the state."""
        same_names = (
            not self._other_modules
            and not any("parameter" in block.kinds for block in self._loose.values())
            and list(map(id, self.modules.values())) == list(map(id, self._old_modules.values()))
        )
        origins: dict[int, Origin] | None = None
        for path, optimizer, own in self._late:
            block = self._old_optimizers.get((path, own)) if same_names and not self._foretell else None
            if block is None or block.named.optimizer is not optimizer or not block.unchanged():
                origins = self._origins() if origins is None else origins
                named = Named(path, optimizer, origins)
                block = OptimizerBlock(named, own, forecast(optimizer) if self._foretell else None)
            if (path, own) in self.optimizers:
                raise UnsupportedValueError(f"two optimizers in the state have the path {path!r}", hint="rename a key")
            self.optimizers[path, own] = block
            self._put(path, self._optimizer_value(block, own), own=own)

    def _optimizer_value(self, block: OptimizerBlock, own: bool) -> dict[str, Any]:
        other: Callable[[str, Any], Any] = partial(self._value, own=own)
        state: Callable[[str, Any], Any] = partial(self._value, own=own, kind="optimizer")
        value: dict[str, Any] = {"param_groups": block.named.plain_groups(other)}
        if not block.only_tensors:
            value["state"] = block.named.plain_state(state)
        return value

    def _origins(self) -> dict[int, Origin]:
        """Names of parameters by identity; the first name counts."""
        found: dict[int, Origin] = {}
        for (path, _), block in self.modules.items():
            for name, tensor, kind in block.items():
                if kind == "parameter":
                    found.setdefault(id(tensor), (path, name))
        for path, module in self._other_modules:
            for name, tensor in named_parameters(module, path):
                found.setdefault(id(tensor), (path, name))
        for loose in self._loose.values():
            for name, tensor, _ in loose.items():
                found.setdefault(id(tensor), ("", name))
        return found
