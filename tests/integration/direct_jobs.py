"""Jobs of several ranks that load what no memory holds any more."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from tests.integration.jobs import Tell
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import holdfast

_ROWS, _COLUMNS = 64, 1 << 18
Found = tuple[bool, dict[str, int]]


def replicated(tell: Tell, url: str) -> Found:
    """The same on both ranks."""
    return _loaded(url, {"x": torch.ones(_ROWS, _COLUMNS)})


def sharded(tell: Tell, url: str) -> Found:
    """Rows of one tensor."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return _loaded(url, {"x": distribute_tensor(torch.ones(_ROWS, _COLUMNS), mesh, [Shard(0)])})


def _loaded(url: str, state: dict[str, Any]) -> Found:
    """Whether all came back, and from where."""
    with holdfast.Checkpointer(url) as ckpt:
        ckpt.load(state)
        save = ckpt.save(1, state)
        assert save is not None
        save.wait("durable", timeout_s=60)
        ckpt.close(discard=True)
    dist.barrier()
    state["x"].zero_()
    with holdfast.Checkpointer(url) as ckpt:
        assert ckpt.load(state) == 1
        assert ckpt.last_load is not None
        good = bool((_local(state["x"]) == 1).all())
        return good, ckpt.last_load.bytes_by_tier


def _local(x: Any) -> torch.Tensor:
    local: torch.Tensor = x.to_local() if hasattr(x, "to_local") else x
    return local
