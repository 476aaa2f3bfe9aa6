"""`holdfast.read`: one tensor or plain value of a checkpoint, as in a notebook."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from holdfast.errors import CorruptError, NotFoundError, StructureError, UsageError
from holdfast.format.nested import DICTS, is_reserved
from holdfast.format.plain import Opaque, TensorRef
from holdfast.model.manifest import TensorRecord
from holdfast.store.ranged import RangedImage
from holdfast.trainer.apply import LoadPlan
from holdfast.trainer.archive import nothing_at, open_archive
from holdfast.trainer.match import Matcher, Scope
from holdfast.trainer.opened import Opened
from holdfast.trainer.placing import MISSING
from holdfast.trainer.portions import filling_of
from holdfast.trainer.saved import OWN_PATHS, Saved, Source, tree_of
from holdfast.trainer.walk import Walk

_MOST_PARTS = 64
"""More names than this below another are those of a module, not the parts of one tensor."""


def read(url: str, fqn: str, *, step: int | None = None) -> Any:
    """One tensor or plain value of a checkpoint, by its full name (`holdfast show URL` lists them).

    A tensor comes on the CPU, whole and in its true dtype, whatever ranks its parts were saved by; only the blocks that
    hold it are read, and proven. A plain value may stand deep in another: `"progress.epoch"`,
    `"optim.param_groups.0.lr"`. What was marked `per_rank` comes as a list with one item for each rank that saved.

    Args:
        url, step: as for `holdfast.load`: no agent, nothing claimed or written.

    Raises: NotFoundError, with near names, when the checkpoint has no such name or there is none; LoadError when
        something is there and nothing (or not that step) can be read; TierError.
    """
    if not isinstance(fqn, str) or not fqn:
        raise UsageError(f"{fqn!r} is no name", hint='pass a full name, for example "model.embed.weight"')
    with open_archive(url) as archive:
        taken = archive.take(step, partial(_read, fqn))
    if taken is None:
        raise nothing_at(url)
    checkpoint, found = taken
    if isinstance(found, _Unknown):
        hint = found.near or f"`holdfast show {url}` lists the names"
        raise NotFoundError(f"{checkpoint} has nothing called {fqn!r}", hint=hint, step=checkpoint.step)
    return found


@dataclass(frozen=True, slots=True)
class _Unknown:
    """Nothing has that name; which ones are near to it, in words."""

    near: str


def _read(fqn: str, checkpoint: Opened) -> Any:
    manifest = checkpoint.manifest
    owners = [t.owner_rank for t in manifest.tensors if t.fqn == fqn] or _owners_of_parts(fqn, checkpoint)
    if owners:
        made = [_made(checkpoint, TensorRef(fqn), rank) for rank in owners]  # in the order of ranks, as manifests are
        return made[0] if owners == [None] else made
    tree = tree_of(checkpoint.plain(0))
    if any(fqn == mark or fqn.startswith(f"{mark}.") for mark in tree.get(OWN_PATHS, [])):
        ranks = range(manifest.world_size)
        values = [_find(tree_of(checkpoint.plain(rank)), fqn) for rank in ranks]
        if any(value is not MISSING for value in values):
            return [None if v is MISSING else _made(checkpoint, v, rank) for rank, v in zip(ranks, values, strict=True)]
    value = _find(tree, fqn)
    if value is not MISSING:
        return _made(checkpoint, value, None)
    return _Unknown(_near(fqn, [*(t.fqn for t in manifest.tensors), *(key for key in tree if not is_reserved(key))]))


def _owners_of_parts(fqn: str, checkpoint: Opened) -> list[int | None]:
    """Whose a tensor is that is stored as several, under names below its own; empty when there is none."""
    below = [t for t in checkpoint.manifest.tensors if t.fqn.startswith(f"{fqn}.")]
    if not 0 < len({t.fqn for t in below}) <= _MOST_PARTS:
        return []
    owners = sorted({t.owner_rank for t in below}, key=lambda owner: -1 if owner is None else owner)
    return [rank for rank in owners if fqn in Saved(_opened(checkpoint, {fqn}, rank)[1]).forms(rank)]


def _find(tree: dict[str, Any], path: str) -> Any:
    """The value at a path of the tree, or deep in one; MISSING when there is none."""
    end = len(path)
    while end > 0:
        if path[:end] in tree:
            value, rest = tree[path[:end]], path[end + 1 :]
            for part in rest.split(".") if rest else ():
                value = _item(value, part)
            return value
        end = path.rfind(".", 0, end)
    return MISSING


def _item(value: Any, name: str) -> Any:
    if type(value) in DICTS:
        return next((v for key, v in value.items() if str(key) == name), MISSING)
    if type(value) in (list, tuple) and name.isdecimal() and int(name) < len(value):
        return value[int(name)]
    return MISSING


def _near(fqn: str, names: list[str]) -> str:
    below = [name for name in names if name.startswith(f"{fqn}.")]
    if below:
        return f"there are {len(below)} names below it: {', '.join(below[:3])}" + (" ..." if len(below) > 3 else "")
    near = [name for name in names if name.endswith(f".{fqn}")] or difflib.get_close_matches(fqn, names)
    return f"near to it: {', '.join(near[:3])}" if near else ""


def _made(checkpoint: Opened, value: Any, rank: int | None) -> Any:
    """A saved value, whole: its tensors are read.

    Raises: StructureError: it is of a type that this process does not know; what reading raises.
    """
    found = _with_parts(value, _opened(checkpoint, set(_refs(value)), rank), rank)
    if found is MISSING:
        raise CorruptError("a plain value names a tensor that no image holds")
    return found


def _with_parts(value: Any, opened: tuple[list[RangedImage], list[Source]], rank: int | None) -> Any:
    """A saved value with its tensors out of these images; MISSING when one of them is not there."""
    images, sources = opened
    saved = Saved(sources)
    matcher = Matcher(saved, Walk({}, {}), rank=rank or 0, world_size=saved.world_size)
    build = matcher.new(value, Scope(rank, {}))
    if matcher.differences.missing:
        return MISSING
    for unknown in matcher.differences:
        raise StructureError(
            f"{unknown.path!r} cannot be made here: it is {unknown.there}", hint="register its type, then read it"
        )
    plan = LoadPlan(filling_of(sources, matcher.copies), matcher.first, matcher.differences)
    plan.filling.fill_from(images)
    plan.finish()
    return build()


def _opened(checkpoint: Opened, names: set[str], rank: int | None) -> tuple[list[RangedImage], list[Source]]:
    """The images that hold tensors of these names, or parts of them."""

    def wanted(tensor: TensorRecord) -> bool:
        begins = (tensor.fqn[:end] for end in range(len(tensor.fqn)) if tensor.fqn[end] == ".")
        return tensor.owner_rank == rank and (tensor.fqn in names or any(begin in names for begin in begins))

    images = checkpoint.images_for(wanted, ()) if names else []
    return images, checkpoint.sources(images, ())


def _refs(value: Any) -> Iterator[str]:
    if isinstance(value, TensorRef):
        yield value.fqn
    elif isinstance(value, Opaque):
        yield from _refs(value.value)
    elif type(value) in DICTS or type(value) in (list, tuple):
        for inner in value.values() if type(value) in DICTS else value:
            yield from _refs(inner)
