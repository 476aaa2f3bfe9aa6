"""Matches a module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import Module

from holdfast.trainer.modules import loads_itself, state_dict_of
from holdfast.trainer.placing import Build, give
from holdfast.trainer.values import form_of

if TYPE_CHECKING:
    from holdfast.trainer.match import Matcher, Scope


def match_module(matcher: Matcher, path: str, module: Module, scope: Scope) -> Build:
    """Match the parameters and buffers of a module, each by its name."""
    block = matcher.modules.get((path, scope.rank is not None))
    if block is None or loads_itself(module):
        return _asked_module(matcher, path, module, scope)
    for name, tensor, _ in block.items():
        matcher.tensor(name, tensor, scope)
    return lambda: module


def _asked_module(matcher: Matcher, path: str, module: Module, scope: Scope) -> Build:
    """A module that wants to see a load: its tensors are filled, then it is given all of its state."""
    content, names = state_dict_of(module, path)
    saved = matcher.take(path, scope)
    rest: dict[str, Build] = {}
    for key, x in content.items():
        if isinstance(x, torch.Tensor):
            matcher.tensor(names[key], x, scope)
        elif not matcher.selection.takes(names[key]):
            continue
        elif isinstance(saved, dict) and names[key] in saved:
            rest[key] = matcher.new(saved[names[key]], scope)
        else:
            matcher.differences.note("missing", names[key], form_of(x))

    def load() -> Any:
        for key, x in content.items():
            content[key] = rest[key]() if key in rest else x.detach() if isinstance(x, torch.Tensor) else x
        give(path, module.load_state_dict, content)
        return module

    return load
