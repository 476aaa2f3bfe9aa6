"""Matches a container of which a load was asked for some items only."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from holdfast.format.nested import DICTS
from holdfast.trainer.match_containers import is_more
from holdfast.trainer.placing import MISSING, Build, put

if TYPE_CHECKING:
    from holdfast.trainer.match import Matcher, Scope


def match_part(matcher: Matcher, path: str, x: Any, value: Any, scope: Scope) -> Build:
    """Match the items that are asked for; the others, and the container, stay as they are.

    Raises: StructureError when what stands here is loaded whole or not at all.
    """
    if type(x) not in (*DICTS, list):
        raise matcher.selection.whole(path, f"the {type(x).__name__}")
    puts: list[Callable[[], None]] = []
    for key in range(len(x)) if type(x) is list else list(x):
        at, here = f"{path}.{key}", x[key]
        if not matcher.selection.reaches(at):
            continue
        matcher.seen(at)
        there = _item(value, key)
        if there is MISSING and not is_more(here):
            matcher.differences.note("missing", at, type(here).__name__)
        else:
            puts.append(partial(put, x, key, matcher.value(at, here, there, scope)))

    def build() -> Any:
        for one in puts:
            one()
        return x

    return build


def _item(value: Any, key: Any) -> Any:
    if type(value) in DICTS:
        return value.get(key, MISSING)
    return value[key] if type(value) in (list, tuple) and type(key) is int and key < len(value) else MISSING
