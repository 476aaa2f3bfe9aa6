"""Plain values of a checkpoint for a person: read without torch, printed as Python would write them."""

from __future__ import annotations

import shutil
from collections import defaultdict
from pprint import pformat
from typing import TYPE_CHECKING, Any

from holdfast.cli.output import counted
from holdfast.errors import NotFoundError
from holdfast.format.plain import Opaque, TensorRef, decode
from holdfast.model.manifest import Manifest

if TYPE_CHECKING:
    from holdfast.store.tensors import Images

_MAX_WIDTH = 100


def read_plain(images: Images, manifest: Manifest, rank: int) -> bytes:
    """The plain values of a rank as tagged JSON, proven; those of rank 0 stand in the manifest when they are small.

    Raises: NotFoundError for a rank that is not in the world; CorruptError; TierError.
    """
    if rank == 0 and manifest.plain is not None:
        return manifest.plain
    record = next((r for r in manifest.images if (r.id.rank, r.id.image) == (rank, 0)), None)
    if record is None:
        raise NotFoundError(
            f"{manifest.id} has {counted(manifest.world_size, 'rank')}, none is {rank}",
            hint=f"ranks are 0 to {manifest.world_size - 1}",
            step=manifest.id.step,
        )
    return images.plain(record)


def pretty(payload: bytes) -> str:
    """The values as text; a tensor is named, a value of a type nobody here knows is its tag and its content."""
    width = min(_MAX_WIDTH, shutil.get_terminal_size().columns)
    return pformat(_readable(decode(payload, keep_unknown=True)), width=width, compact=True, sort_dicts=False)


def shown(value: Any) -> str:
    """One decoded value as text."""
    return pformat(_readable(value), width=_MAX_WIDTH, compact=True, sort_dicts=False)


class _Shown:
    """Stands for a value that has no literal: `repr` is the text, without quotes."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _readable(value: Any) -> Any:
    if isinstance(value, TensorRef):
        return _Shown(f"<tensor {value.fqn}>")
    if isinstance(value, Opaque):
        return _Shown(f"{value.tag}({_readable(value.value)!r})")
    if isinstance(value, dict):
        items = {_readable(key): _readable(item) for key, item in value.items()}
        return defaultdict(value.default_factory, items) if type(value) is defaultdict else type(value)(items)
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(_readable(item) for item in value)
    return value
