"""The four states of the table, and the small model that trains beside each.

What is large is ballast: real modules and optimizers that are saved and never run, so that a step takes tens of
milliseconds and is saved with them. The small model trains for real, sharded or replicated as the ballast is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from awscrt import checksums
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from benchmarks.shm import raw
from benchmarks.state import Size, Transformer, build

Guard = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, slots=True)
class StateSpec:
    """A row group of the table: what it is in words, and on how many ranks."""

    what: str
    ranks: int
    build: Callable[[bool, int], dict[str, Any]]
    """(quick, seed) -> the large part."""
    layers: int
    """Of the small model that trains."""


class Training:
    """The whole state of this rank, and one step of its training."""

    def __init__(self, spec: StateSpec, *, quick: bool, seed: int) -> None:
        self._ranks = spec.ranks
        self.state = spec.build(quick, seed)
        torch.manual_seed(seed)
        layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True)
        model: nn.Module = nn.TransformerEncoder(layer, spec.layers, enable_nested_tensor=False)
        if "sharded" in spec.what:
            _shard(model)
        elif spec.ranks > 1:
            model = nn.parallel.DistributedDataParallel(model)
        self._model, self._optimizer = model, torch.optim.AdamW(model.parameters(), lr=1e-4)
        self._input = torch.randn(4, 96, 256)
        self.state |= {"small": getattr(model, "module", model), "small_optimizer": self._optimizer}

    def step(self, guard: Guard) -> float:
        """One step, in seconds; `guard` is what the way to save wants around the optimizer."""
        began = time.perf_counter()
        self._optimizer.zero_grad()
        (self._model(self._input) - self._input).square().mean().backward()
        with guard():
            self._optimizer.step()
        return time.perf_counter() - began

    def agreed(self, mine: bool) -> bool:
        """Whether all ranks say so: they train the same number of steps."""
        if self._ranks == 1:
            return mine
        flag = torch.tensor([int(mine)])
        dist.all_reduce(flag, op=dist.ReduceOp.MIN)
        return bool(flag.item())

    def fingerprint(self) -> int:
        """CRC64NVME of every tensor of this rank: any wrongly loaded byte changes it."""
        crc = 0
        for tensor in _tensors(self.state):
            crc = int(checksums.crc64nvme(raw(tensor).numpy().data, crc))
        return crc

    def size_bytes(self) -> int:
        """Of this rank's tensors."""
        return sum(t.nbytes for t in _tensors(self.state))

    def tensor_count(self) -> int:
        return len(_tensors(self.state))

    def spoil(self) -> None:
        """Other values, so that a load that loads nothing shows."""
        for tensor in _tensors(self.state):
            raw(tensor).bitwise_xor_(0x15)

    def copies(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Faulted memory of the same shapes, and the tensors: for the floor `torch._foreach_copy_`."""
        live = _tensors(self.state)
        return [t.clone() for t in live], live


def _tensors(state: dict[str, Any]) -> list[torch.Tensor]:
    """Local parts of all parameters, buffers and optimizer tensors, in a fixed order."""
    found: list[torch.Tensor] = []
    for part in state.values():
        if isinstance(part, nn.Module):
            found += [*part.parameters(), *part.buffers()]
        else:
            params = [p for group in part.param_groups for p in group["params"]]
            found += [t for p in params for t in part.state.get(p, {}).values() if isinstance(t, torch.Tensor)]
    return [_local(t).detach() for t in found]


def _local(tensor: Any) -> torch.Tensor:
    local: torch.Tensor = tensor.to_local() if hasattr(tensor, "placements") else tensor
    return local


def _shard(model: nn.Module) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    blocks = getattr(model, "blocks", None) or getattr(model, "layers", None)
    for block in blocks or ():
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _transformer(quick: bool, seed: int) -> dict[str, Any]:
    size = Size(layers=4, width=192, vocabulary=4_096, context=256) if quick else Size(12, 848, 50_304)
    return build(size, seed=seed)


def _replicated(quick: bool, seed: int) -> dict[str, Any]:
    size = Size(layers=2, width=128, vocabulary=4_096, context=256) if quick else Size(8, 512, 16_384)
    return build(size, seed=seed)


def _many(quick: bool, seed: int) -> dict[str, Any]:
    """With an optimizer that keeps nothing: what no optimizer owns counts as frozen, and we would write it once."""
    torch.manual_seed(seed)
    count = 1_000 if quick else 10_000
    model = nn.ModuleList(nn.Linear(31, 31) for _ in range(count))
    return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}


def _sharded(quick: bool, seed: int) -> dict[str, Any]:
    """fp32 parameters and AdamW, made without a step of the large model."""
    size = Size(layers=2, width=128, vocabulary=4_096, context=256) if quick else Size(12, 640, 40_000)
    with torch.device("meta"):
        model = Transformer(size)
    _shard(model)
    model.to_empty(device="cpu")
    pattern = torch.randn(4_096, generator=torch.Generator().manual_seed(seed))
    for p in model.parameters():
        local = _local(p.data)
        local.copy_(pattern.repeat(-(-local.numel() // len(pattern)))[: local.numel()].view(local.shape))
        p.grad = torch.zeros_like(p)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
    optimizer.step()
    optimizer.zero_grad()
    return {"model": model, "optimizer": optimizer}


STATES = {
    "transformer": StateSpec("a transformer, 2.06 GB in 592 tensors, one process", 1, _transformer, 3),
    "tensors": StateSpec("a module of 20,000 parameters, 2 KB on average, one process", 1, _many, 3),
    "fsdp2": StateSpec("a transformer, 1 GB, sharded by FSDP2 on 2 ranks", 2, _sharded, 3),
    "ddp": StateSpec("a transformer, 0.5 GB, replicated by DDP on 4 ranks", 4, _replicated, 2),
}
"""Small enough that two ways to save fit 16 GB beside each other."""
