"""What a rank holds of a DTensor, by arithmetic from mesh and placements. No collective, no copy.

torch is asked for placements and for the local tensor only; that the two agree is checked, so a layout understood
wrongly is an error and never wrong bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import compress, product
from math import prod
from operator import not_

import torch
import torch.distributed as dist

from holdfast.trainer.structure import Box, Boxes

Run = tuple[int, int]
"""[start, stop) along one dimension"""


@dataclass(frozen=True, slots=True)
class Cut:
    """One axis of a mesh that cuts dimension `dim` into `count` pieces, of which the rank has number `index`.

    With a `factor` above 1, as FSDP2 says of what tensor parallelism had cut before, first into so many pieces, then
    each of these into `count`.
    """

    dim: int
    count: int
    index: int
    factor: int = 1


def is_dtensor(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a DTensor. Imports nothing: none exists before torch's module is imported."""
    kind = _kind()
    return kind is not None and isinstance(tensor, kind)


def can_exist() -> bool:
    """Whether torch's module of DTensors was imported by anyone, and there are ranks to make a mesh of."""
    return _kind() is not None and dist.is_available() and dist.is_initialized()


def _kind() -> type | None:
    module = sys.modules.get("torch.distributed.tensor")
    return getattr(module, "DTensor", None)


def locals_of(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors, and of DTensors the local ones: one pass in C where there is none."""
    kind = _kind()
    if kind is None or not any(issubclass(t, kind) for t in set(map(type, tensors))):
        return tensors
    return [t._local_tensor if isinstance(t, kind) else t for t in tensors]  # type: ignore[attr-defined]


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a DTensor's local one: its own, not a view of it."""
    if not is_dtensor(tensor):
        return tensor
    local: torch.Tensor = tensor._local_tensor  # type: ignore[attr-defined]  # `to_local()` makes a new tensor
    return local


def boxes_of(tensor: torch.Tensor) -> Boxes | None:
    """What this rank holds of a tensor; None: all of it, as of every tensor that is no DTensor, or has no elements.

    A DTensor must have passed `why_not`.
    """
    if not is_dtensor(tensor) or 0 in tensor.shape:
        return None
    cuts = _cuts(tensor)
    return () if cuts is None else boxes(tuple(tensor.shape), cuts)


def why_not(tensor: torch.Tensor) -> tuple[str, str] | None:
    """What keeps a DTensor from being saved or loaded, and what to do; None if nothing does."""
    placements = tensor.placements  # type: ignore[attr-defined]
    if any(p.is_partial() for p in placements):
        return (
            f"has the placements {tuple(map(str, placements))}: no rank holds its values, only terms of a sum",
            "reduce it first: x.redistribute(placements=...) with Shard or Replicate in place of Partial",
        )
    strange = [p for p in placements if not p.is_replicate() and type(p).__name__ not in ("Shard", "_StridedShard")]
    if strange:
        return f"has the placement {strange[0]}", "redistribute it to Shard and Replicate first"
    held, local = boxes_of(tensor), local_of(tensor)
    meant = tuple(tensor.shape) if held is None else _local_shape(held, local)
    if tensor.numel() and meant != tuple(local.shape):
        layout = f"{tuple(map(str, placements))} of {list(tensor.shape)}"
        return (
            f"has a local shard of shape {list(local.shape)}, but {layout} mean {list(meant)} on this rank",
            "give DTensor.from_local the true global shape and stride, or use distribute_tensor or fully_shard",
        )
    return None


def beside(key: str, shape: Sequence[int], parameter: torch.Tensor) -> bool:
    """Whether torch keeps a state entry as a plain tensor though its parameter is a DTensor: counts, rates."""
    return key == "step" or (len(shape) == 0 and parameter.ndim > 0)


def entry_like(parameter: torch.Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Memory for a state entry of a DTensor parameter, as torch's optimizers make it: where it has the parameter's
    shape it is sharded as that, else every rank of the mesh has it completely. Sends nothing."""
    with torch.no_grad():
        if tuple(shape) == tuple(parameter.shape):
            return torch.empty_like(parameter, dtype=dtype, device=device, requires_grad=False)
        return parameter.new_empty(tuple(shape), dtype=dtype, device=device)


# Arithmetic ----------------------------------------------------------------------------------------------------------
def _cuts(tensor: torch.Tensor) -> tuple[Cut, ...] | None:
    """None: this rank is no part of the mesh."""
    mesh = tensor.device_mesh  # type: ignore[attr-defined]
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        return None
    axes = zip(tensor.placements, mesh.shape, coordinate, strict=True)  # type: ignore[attr-defined]
    return tuple(
        Cut(p.dim % tensor.ndim, int(count), int(index), int(getattr(p, "split_factor", 1)))
        for p, count, index in axes
        if not p.is_replicate()
    )


@lru_cache(4096)  # a state has few distinct shapes
def boxes(shape: tuple[int, ...], cuts: tuple[Cut, ...]) -> Boxes | None:
    """What is left of a tensor of that shape after all cuts, in the order of the mesh's axes; None: all of it."""
    lines = [_line(size, tuple(c for c in cuts if c.dim == dim)) for dim, size in enumerate(shape)]
    found = []
    for runs in product(*(zip(line, _starts(line), strict=True) for line in lines)):
        offsets = tuple(start for (start, _), _ in runs)
        lengths = tuple(stop - start for (start, stop), _ in runs)
        found.append(Box(offsets, lengths, tuple(at for _, at in runs)))
    return None if [p.lengths for p in found] == [shape] else tuple(found)


def _line(size: int, cuts: tuple[Cut, ...]) -> list[Run]:
    """What is left of one dimension.

    FSDP2 cuts what tensor parallelism has cut, and says so with a factor on an axis that stands further left. Read from
    left to right, as torch does elsewhere, that is the same only where every piece is as long as the next: so it is
    cut here in the order in which it was.
    """
    runs = [(0, size)]
    late = [c.factor > 1 and c.factor == prod(right.count for right in cuts[i + 1 :]) for i, c in enumerate(cuts)]
    for cut in compress(cuts, map(not_, late)):
        runs = _chunk(runs, cut.count, cut.index) if cut.factor == 1 else _strided(runs, cut)
    for cut in reversed(list(compress(cuts, late))):
        runs = _chunk(runs, cut.count, cut.index)
    return runs


def _strided(runs: list[Run], cut: Cut) -> list[Run]:
    """Piece `index` of each of `factor` pieces, one after the other."""
    found: list[Run] = []
    for i in range(cut.factor):
        for run in _chunk(_chunk(runs, cut.factor, i), cut.count, cut.index):
            if found and found[-1][1] == run[0]:
                found[-1] = (found[-1][0], run[1])
            else:
                found.append(run)
    return found


def _chunk(runs: list[Run], count: int, index: int) -> list[Run]:
    """As torch.chunk: equal pieces, the last ones shorter or empty."""
    total = sum(stop - start for start, stop in runs)
    full = -(-total // count)
    begin = min(total, full * index)
    end = min(total, begin + full)
    found = []
    at = 0
    for start, stop in runs:
        left, right = max(begin, at), min(end, at + stop - start)
        if left < right:
            found.append((start + left - at, start + right - at))
        at += stop - start
    return found


def _starts(line: list[Run]) -> list[int]:
    starts = [0]
    for start, stop in line[:-1]:
        starts.append(starts[-1] + stop - start)
    return starts[: len(line)]


def _local_shape(held: Boxes, local: torch.Tensor) -> tuple[int, ...]:
    """The shape of a local tensor that holds these; an empty one may have any shape without elements."""
    if not held:
        return tuple(local.shape) if local.numel() == 0 else (0,)
    return tuple(max(p.at[d] + p.lengths[d] for p in held) for d in range(len(held[0].at)))
