"""Orbax, whose arrays are numpy's here: views of the torch tensors, so that nothing is copied to get there."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from orbax import checkpoint as ocp

from benchmarks.table.ways.plain import flat_tensors
from benchmarks.table.ways.way import Flight, Job, Numbered, state_dicts


class Orbax(Numbered):
    """AsyncCheckpointer. `best`: a file per array (no OCDBT) in zarr3."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        best = job.setting == "best"
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=not best, use_zarr3=best)
        self._checkpointer = ocp.AsyncCheckpointer(handler, timeout_secs=240)

    def save(self) -> Flight:
        self._checkpointer.save(self.next_target(), args=ocp.args.PyTreeSave(_arrays(self.job)))

        def work() -> None:
            self._checkpointer.wait_until_finished()
            self.make_durable()

        return Flight(work)

    def load(self) -> None:
        arrays = _arrays(self.job)
        restore = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in arrays}
        found: Any = self._checkpointer.restore(
            self.target, args=ocp.args.PyTreeRestore(item=arrays, restore_args=restore)
        )
        for name, array in arrays.items():
            np.copyto(array, found[name])

    def end(self) -> None:
        self._checkpointer.close()


def _arrays(job: Job) -> dict[str, np.ndarray[Any, Any]]:
    """bf16 as int16: numpy has no bf16, and the bytes are the same."""
    return {name: _array(tensor) for name, tensor in flat_tensors(state_dicts(job)).items()}


def _array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    plain = tensor.detach()
    return plain.view(torch.int16).numpy() if plain.dtype is torch.bfloat16 else plain.numpy()
