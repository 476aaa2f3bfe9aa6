"""State of an optimizer under the names of its parameters.

torch numbers parameters by their place in the groups; reordered parameters of equal shape would load silently wrong.
Here a parameter has the name it has in its module, found by identity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch.optim import Optimizer

from holdfast.errors import UnsupportedValueError
from holdfast.trainer.modules import Block, Container, Watch, join
from holdfast.trainer.twin import Entries

STATE = "state"
GROUPS = "param_groups"
NOT_SETTINGS = frozenset({"params", "param_names"})
"""Keys of a group that say which parameters it has: these belong to the live optimizer."""

Origin = tuple[str, str]
"""(path of the module, or "" for a parameter that stands in the state itself; full name of the parameter)"""
WalkValue = Callable[[str, Any], Any]
"""(name, value) -> the plain value, its tensors noted under that name."""


class Named:
    """An optimizer with the names of its parameters.

    Raises: UnsupportedValueError, for a parameter that no module in the state has.
    """

    def __init__(self, path: str, optimizer: Optimizer, origins: Mapping[int, Origin]) -> None:
        self.path = path
        self.optimizer = optimizer
        self.groups: list[list[str]] = []
        found = [[_origin(path, origins, g, i, p) for i, p in enumerate(group["params"])] for g, group in _groups(self)]
        self.parameter_names = frozenset(name for group in found for _, name in group)
        """Full names, as the state has them."""
        modules = {origin[0] for group in found for origin in group}
        # With parameters of several modules only the full names are unique.
        skip = len(modules.pop()) + 1 if len(modules) == 1 and modules != {""} else 0
        self.groups = [[name[skip:] for _, name in group] for group in found]

    def parameters(self) -> Iterator[tuple[str, torch.Tensor, int]]:
        """(name, parameter, group) of each."""
        for g, (names, group) in enumerate(zip(self.groups, self.optimizer.param_groups, strict=True)):
            for name, parameter in zip(names, group["params"], strict=True):
                yield name, parameter, g

    def state_name(self, parameter: str, key: str) -> str:
        return f"{self.path}.{STATE}.{parameter}.{key}"

    def plain_groups(self, walk: WalkValue) -> list[dict[str, Any]]:
        """Settings of each group, and its parameters by name."""
        groups = []
        for g, group in _groups(self):
            at = f"{self.path}.{GROUPS}.{g}"
            settings = {k: walk(join(at, k), v) for k, v in group.items() if k not in NOT_SETTINGS}
            groups.append({**settings, "params": self.groups[g]})
        return groups

    def plain_state(self, walk: WalkValue) -> dict[str, Any]:
        """Per parameter, the state entries that are not one tensor."""
        found = {}
        for name, parameter, _ in self.parameters():
            entries = self.optimizer.state.get(parameter)
            rest = {k: v for k, v in entries.items() if not is_entry(k, v)} if entries else None
            if rest:
                at = f"{self.path}.{STATE}.{name}"
                found[name] = {k: walk(join(at, k), v) for k, v in rest.items()}
        return found


def _groups(named: Named) -> Iterator[tuple[int, dict[str, Any]]]:
    return enumerate(named.optimizer.param_groups)


def _origin(path: str, origins: Mapping[int, Origin], group: int, index: int, parameter: torch.Tensor) -> Origin:
    origin = origins.get(id(parameter))
    if origin is None:
        raise UnsupportedValueError(
            f"parameter {index} of group {group} of the optimizer {path!r} (shape {tuple(parameter.shape)}) is in no "
            "module of the state, so its optimizer state has no name",
            hint='put the module it belongs to into the state too: {"model": model, "optimizer": optimizer}',
        )
    return origin


def is_entry(key: object, value: object) -> bool:
    """Whether a state entry is a tensor whose name alone says where it belongs; others stand in the tree."""
    return isinstance(value, torch.Tensor) and type(key) is str and "." not in key and key != ""


class OptimizerBlock(Block):
    """The tensors of an optimizer's state. Valid while `unchanged()` and while the modules keep their parameters."""

    def __init__(self, named: Named, own: bool, foretold: Mapping[torch.Tensor, Entries] | None = None) -> None:
        super().__init__(own)
        self.named = named
        state = named.optimizer.state
        # Stand-ins share their tensors; without memory they do not look tied.
        foretold = {p: _without_memory(entries) for p, entries in (foretold or {}).items()}
        self.only_tensors = True
        for name, parameter, _ in named.parameters():
            entries = state.get(parameter) or foretold.get(parameter, {})
            for key, value in entries.items():
                if is_entry(key, value):
                    self.add(named.state_name(name, key), value, "optimizer")
                else:
                    self.only_tensors = False
        self._check_strangers()
        self._watch = Watch(partial(_containers, named.optimizer))

    def unchanged(self) -> bool:
        """Plain entries change with each step, so with them the answer is no."""
        return self.only_tensors and self._watch.unchanged() and self.follow_parts()

    def _check_strangers(self) -> None:
        state = self.named.optimizer.state
        known = {id(p) for _, p, _ in self.named.parameters()}
        for key in state:
            if id(key) not in known:
                what = f"{type(key).__name__} {str(key)[:40]!r}" if not isinstance(key, torch.Tensor) else "a tensor"
                raise UnsupportedValueError(
                    f"the optimizer {self.named.path!r} keeps state for {what}, which is in none of its groups",
                    hint="keep it outside the optimizer, in the state itself",
                )


def _without_memory(entries: Entries) -> Entries:
    return {k: v.to("meta") if isinstance(v, torch.Tensor) and not v.is_meta else v for k, v in entries.items()}


def _containers(optimizer: Optimizer) -> Iterable[Container]:
    groups = optimizer.param_groups
    return chain([optimizer.state, groups], optimizer.state.values(), [group["params"] for group in groups])
