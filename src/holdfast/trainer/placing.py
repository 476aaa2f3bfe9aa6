"""Puts values in place, in what the user holds on to: after all tensors were copied."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from holdfast.errors import HoldfastError, LoadError
from holdfast.trainer.per_rank import PerRank
from holdfast.trainer.walk import is_stateful

MISSING: Any = object()
"""The checkpoint has no value here."""
Build = Callable[[], Any]
"""Called once, after all tensors were copied: the value that belongs in a place."""


def put(container: Any, key: Any, build: Build) -> None:
    """Put a value where it belongs; a container that is its own new value is left alone."""
    value = build()
    if value is not container[key]:
        container[key] = value


def refill(x: Any, builds: list[tuple[Any, Build]]) -> Any:
    """Give a dict new items; it stays the same object."""
    pairs = [(key, build()) for key, build in builds]
    x.clear()
    x.update(dict(pairs))
    return x


def replace(x: list[Any], builds: list[Build]) -> list[Any]:
    """Give a list new items; it stays the same object."""
    x[:] = [build() for build in builds]
    return x


def set_mark(mark: PerRank, build: Build) -> PerRank:
    """Give a mark its value."""
    mark.value = build()
    return mark


def give(path: str, take: Callable[..., Any], *values: Any) -> Any:
    """Call code of the user's. Raises: LoadError with the path, whatever it raises."""
    try:
        return take(*values)
    except HoldfastError:
        raise
    except Exception as e:
        name = getattr(getattr(take, "func", take), "__qualname__", repr(take))
        raise LoadError(f"{name} of {path!r} raised {type(e).__name__}: {e}") from e


def adopt(path: str, live: Any, value: Any) -> Any:
    """Put a value that the user's callable made where the live one is."""
    if isinstance(live, torch.Tensor) and isinstance(value, torch.Tensor) and live.shape == value.shape:
        with torch.no_grad():
            return live.copy_(value)
    if is_stateful(live):
        give(path, live.load_state_dict, value)
        return live
    return value
