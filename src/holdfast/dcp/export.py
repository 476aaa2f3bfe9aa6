"""Writes a folder of torch DCP by torch's own writer, so that it is whatever the installed torch reads.

The writer is fed by a planner that reads when it is asked. It holds on to every tensor of a plan until that is written,
so there are many plans, of about a GiB each, as if by as many ranks.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, TensorWriteData, WriteItem, WriteItemType

from holdfast.errors import UnsupportedValueError
from holdfast.format.nested import DICTS, flatten, rebuild
from holdfast.format.pickled.writing import TORCH_SAVES
from holdfast.format.plain import Opaque, TensorRef
from holdfast.model.rect import Rect
from holdfast.store.blocks import Progress, no_progress
from holdfast.store.exporting.chosen import Chosen, item_bytes
from holdfast.store.exporting.places import new_folder
from holdfast.store.rects import parts
from holdfast.store.tensors import StoredTensor
from holdfast.trainer.values import ENCODERS, dtype_of

PIECE_BYTES = 512 * 2**20
PLAN_BYTES = 2**30
_SHOWN = 20
_Place = tuple[StoredTensor, int, Rect]
"""A tensor, which of its chunks, and what of that."""


def export_dcp(
    chosen: Chosen,
    path: Path,
    *,
    piece_bytes: int = PIECE_BYTES,
    plan_bytes: int = PLAN_BYTES,
    progress: Progress = no_progress,
) -> list[Path]:
    """Write the folder, `.metadata` last. Returns what was written.

    Raises: UnsupportedValueError naming what torch.save does not take; UsageError when something is there;
        CorruptError, TierError: nothing is there then.
    """
    leaves, paths = flatten(chosen.tree)
    _refuse(chosen, leaves)
    planner = _Planner(chosen, progress)
    with new_folder(path):
        writer = FileSystemWriter(path)
        writer.set_up_storage_writer(is_coordinator=True)
        plans = [SavePlan(items) for items in planner.plans(leaves, piece_bytes, plan_bytes)]
        plans, metadata = create_default_global_save_plan([writer.prepare_local_plan(plan) for plan in plans])
        asked = cast("SavePlanner", planner)
        results = [writer.write_data(plan, asked).wait() for plan in writer.prepare_global_plan(plans)]
        writer.finish(dataclasses.replace(metadata, planner_data=paths), results)
        return sorted(path.iterdir())


def _refuse(chosen: Chosen, leaves: dict[str, Any]) -> None:
    problems: list[str] = []
    for name, x in leaves.items():
        for what in _problems(chosen, x):
            problems.append(f"{name} ({what})")
    if problems:
        more = f", and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise UnsupportedValueError(
            f"torch.save does not take {', '.join(problems[:_SHOWN])}{more}", hint="leave them out: --without NAME"
        )


def _problems(chosen: Chosen, x: Any) -> Iterator[str]:
    if type(x) is TensorRef:
        dtype = chosen.tensors[x.fqn].record.dtype
        if dtype not in TORCH_SAVES:
            yield f"a tensor of {dtype}"
    elif type(x) is Opaque:
        if x.tag not in _MADE:
            yield x.tag
    elif type(x) in DICTS or type(x) in (list, tuple):
        for item in x.values() if type(x) in DICTS else x:
            yield from _problems(chosen, item)


class _Planner:
    """Answers what torch's writer asks a planner: the data of an item, read now."""

    def __init__(self, chosen: Chosen, progress: Progress) -> None:
        self._chosen, self._progress = chosen, progress
        self._places: dict[tuple[str, tuple[int, ...]], _Place] = {}
        self._values: dict[str, Any] = {}

    def plans(self, leaves: dict[str, Any], piece_bytes: int, plan_bytes: int) -> Iterator[list[WriteItem]]:
        """The items of each plan: values first, then tensors in the order of their bytes."""
        names = {x.fqn: name for name, x in leaves.items() if type(x) is TensorRef}
        self._values = {name: x for name, x in leaves.items() if type(x) is not TensorRef}
        items = [WriteItem(MetadataIndex(name), WriteItemType.BYTE_IO) for name in self._values]
        n_bytes = 0
        for fqn, tensor in self._chosen.tensors.items():
            if fqn not in names:
                continue  # within a value
            for chunk, rect in _pieces(tensor, piece_bytes):
                size = rect.size * item_bytes(tensor)
                if items and n_bytes + size > plan_bytes:
                    yield items
                    items, n_bytes = [], 0
                self._places[names[fqn], rect.offsets] = tensor, chunk, rect
                items.append(_item(names[fqn], tensor, rect))
                n_bytes += size
        yield items

    def resolve_data(self, item: WriteItem) -> torch.Tensor | io.BytesIO:
        """What torch's writer asks for."""
        if item.type is not WriteItemType.BYTE_IO:
            tensor, chunk, rect = self._places[item.index.fqn, tuple(item.index.offset or ())]
            return self._read(tensor, chunk, rect)
        data = io.BytesIO()
        torch.save(self._made(self._values[item.index.fqn]), data)
        return data

    def _read(self, tensor: StoredTensor, chunk: int, rect: Rect) -> torch.Tensor:
        dtype = dtype_of(tensor.record.dtype)
        if not rect.size:
            return torch.empty(rect.lengths, dtype=dtype)
        raw = tensor.read(chunk, rect).reshape(-1)
        raw = raw if raw.flags.writeable else raw.copy()  # torch knows no read-only tensors
        self._progress(raw.nbytes)
        return torch.from_numpy(raw).view(dtype).reshape(rect.lengths)

    def _made(self, x: Any) -> Any:
        """A value as torch.save is to have it: torch's own types, and whole tensors."""
        if type(x) is TensorRef:
            return self._whole(self._chosen.tensors[x.fqn])
        if type(x) is Opaque:
            return _MADE[x.tag](x.value)
        if type(x) in DICTS:
            return rebuild(x, [(key, self._made(item)) for key, item in x.items()])
        if type(x) in (list, tuple):
            return type(x)([self._made(item) for item in x])
        return x

    def _whole(self, tensor: StoredTensor) -> torch.Tensor:
        whole = torch.empty(tensor.record.shape, dtype=dtype_of(tensor.record.dtype))
        for chunk, rect in tensor.rects:
            at = tuple(slice(o, o + n) for o, n in zip(*rect, strict=True))
            whole[at] = self._read(tensor, chunk, rect)
        return whole


_MADE = {e.tag: e.from_plain for e in ENCODERS if e.type is not torch.Generator}


def _pieces(tensor: StoredTensor, piece_bytes: int) -> Iterator[tuple[int, Rect]]:
    """The rectangles a tensor is stored in, cut; of one without elements the whole."""
    size, shape = item_bytes(tensor), tensor.record.shape
    if not tensor.rects:
        yield 0, Rect((0,) * len(shape), shape)
    for chunk, rect in tensor.rects:
        for part in parts(rect, lambda r: r.size * size <= piece_bytes):
            yield chunk, part


def _item(name: str, tensor: StoredTensor, rect: Rect) -> WriteItem:
    offsets, lengths = torch.Size(rect.offsets), torch.Size(rect.lengths)
    return WriteItem(
        index=MetadataIndex(name, offsets),
        type=WriteItemType.SHARD,
        tensor_data=TensorWriteData(
            chunk=ChunkStorageMetadata(offsets=offsets, sizes=lengths),
            properties=TensorProperties(dtype=dtype_of(tensor.record.dtype)),
            size=torch.Size(tensor.record.shape),
        ),
    )
