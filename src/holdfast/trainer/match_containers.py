"""Matches dicts, lists and tuples, item by item."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import Module
from torch.optim import Optimizer

from holdfast.format.nested import DICTS
from holdfast.trainer.per_rank import PerRank
from holdfast.trainer.placing import MISSING, Build, refill, replace
from holdfast.trainer.walk import is_stateful

if TYPE_CHECKING:
    from holdfast.trainer.match import Matcher, Scope


def is_more(x: Any) -> bool:
    """Whether it is a tensor or an item with a path of its own, or holds one: more than a plain value."""
    return isinstance(x, (PerRank, Module, Optimizer, torch.Tensor)) or is_stateful(x) or holds_items(x)


def match_kept(matcher: Matcher, path: str, x: Any, scope: Scope) -> Build:
    """What the checkpoint's container has no place for: only items and tensors in it matter."""
    if type(x) in DICTS:
        return match_dict(matcher, path, x, {}, scope)
    if type(x) in (list, tuple):
        return match_sequence(matcher, path, x, [], scope)
    return lambda: x


def match_dict(matcher: Matcher, path: str, x: Any, value: Any, scope: Scope) -> Build:
    """Match the items; what the checkpoint has besides them is made new. Items it lacks go, but tensors and items."""
    builds: list[tuple[Any, Build]] = []
    for key, saved in value.items():
        here = x.get(key, MISSING)
        at = f"{path}.{key}"
        builds.append((key, matcher.new(saved, scope) if here is MISSING else matcher.value(at, here, saved, scope)))
    for key, here in x.items():
        if key not in value and is_more(here):
            builds.append((key, matcher.value(f"{path}.{key}", here, MISSING, scope)))
    return partial(refill, x, builds)


def match_sequence(matcher: Matcher, path: str, x: Any, value: Any, scope: Scope) -> Build:
    """As `match_dict`, by position."""
    builds: list[Build] = []
    for i, saved in enumerate(value):
        builds.append(matcher.value(f"{path}.{i}", x[i], saved, scope) if i < len(x) else matcher.new(saved, scope))
    for i in range(len(value), len(x)):
        if is_more(x[i]):
            builds.append(matcher.value(f"{path}.{i}", x[i], MISSING, scope))
    if type(x) is tuple:
        return lambda: tuple(build() for build in builds)
    return partial(replace, x, builds)


def holds_items(x: Any) -> bool:
    """Whether a container has tensors or items with a path of their own somewhere in it."""
    return any(map(is_more, x.values() if type(x) in DICTS else x if type(x) in (list, tuple) else ()))
