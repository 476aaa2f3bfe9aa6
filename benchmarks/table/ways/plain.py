"""One file written by one rank: torch.save, and safetensors' save_file. Both stall for the whole write."""

from __future__ import annotations

import copy
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from benchmarks.table.ways.way import Flight, Job, Numbered, barrier, load_state_dicts, state_dicts


class TorchSave(Numbered):
    """`default`; `best`: the same save, loaded with `mmap=True`. Sharded states are gathered to rank 0 first."""

    def save(self) -> Flight:
        target = self.next_target()
        state = _gathered(self.job)
        if self.job.rank == 0:
            torch.save(state, target)
        barrier(self.job)
        return Flight(self.make_durable)

    def load(self) -> None:
        mapped = self.job.setting == "best"
        loaded = torch.load(self.target, map_location="cpu", mmap=mapped, weights_only=False)  # written by us, above
        if mapped:  # torch's own optimizers keep the tensors they are given, and with them the whole file mapped
            loaded |= {name: copy.deepcopy(part) for name, part in loaded.items() if name.startswith("small")}
        _give_back(self.job, loaded)


class Safetensors(Numbered):
    """Tensors only, by flat names; the few plain values of an optimizer are not saved, which costs it nothing here."""

    def save(self) -> Flight:
        target = self.next_target()
        if self.job.rank == 0:
            save_file(flat_tensors(state_dicts(self.job)), target)
        barrier(self.job)
        return Flight(self.make_durable)

    def load(self) -> None:
        loaded = load_file(self.target)
        with torch.no_grad():
            for name, tensor in flat_tensors(state_dicts(self.job)).items():
                tensor.copy_(loaded[name])


def flat_tensors(value: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """Every tensor of nested dicts, by its dotted path. The tensors are the live ones."""
    if isinstance(value, torch.Tensor):
        return {prefix: value}
    found: dict[str, torch.Tensor] = {}
    if isinstance(value, dict):
        for key, item in value.items():
            found |= flat_tensors(item, f"{prefix}.{key}" if prefix else str(key))
    return found


def _is_sharded(job: Job) -> bool:
    return any(hasattr(p, "placements") for m in job.state.values() if hasattr(m, "parameters") for p in m.parameters())


def _gathered(job: Job) -> dict[str, Any]:
    if not _is_sharded(job):
        return state_dicts(job)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return {name: get_state_dict(*pair, options=options) for name, pair in pairs(job).items()}


def _give_back(job: Job, loaded: dict[str, Any]) -> None:
    if not _is_sharded(job):
        return load_state_dicts(job, loaded)
    options = StateDictOptions(full_state_dict=True)
    for name, (module, optimizer) in pairs(job).items():
        model, optim = loaded[name]
        set_state_dict(module, optimizer, model_state_dict=model, optim_state_dict=optim, options=options)
    return None


def pairs(job: Job) -> dict[str, tuple[Any, Any]]:
    """Each module with its optimizer: `model` and `optimizer`, `small` and `small_optimizer`."""
    owners = {"model": "optimizer", "small": "small_optimizer"}
    return {name: (job.state[name], job.state.get(owner, [])) for name, owner in owners.items() if name in job.state}
