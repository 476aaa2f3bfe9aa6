"""What torch itself offers for the same state: torch.save, DCP save, DCP async save."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncSaveResponse, async_save, save

from benchmarks.files import remove, sync_directory, sync_file
from benchmarks.serving import serve
from benchmarks.state import SIZES, build

Wait = Callable[[], object]


class Peer:
    """One way to save, chosen at set-up; each has a method that returns when training may go on."""

    def __init__(self) -> None:
        self._stager: DefaultStager | None = None

    def setup(self, size: str, threads: int, disk: str, way: str) -> dict[str, Any]:
        torch.set_num_threads(threads)
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is what is meant
        self._state = build(SIZES[size], seed=1)
        self._target = Path(disk) / "peer"
        self._way: Callable[[dict[str, Any]], Wait] = getattr(self, f"_{way}")
        if way == "dcp_async_best":
            self._stager = DefaultStager(
                StagingOptions(
                    use_pinned_memory=False,
                    use_shared_memory=True,
                    use_async_staging=False,
                    use_non_blocking_copy=False,
                )
            )
        return {}

    def save(self) -> dict[str, Any]:
        """One save, followed until its bytes are on the disk."""
        began = time.perf_counter()
        state = {name: part.state_dict() for name, part in self._state.items()}
        wait = self._way(state)
        stall_s = time.perf_counter() - began
        wait()
        found = {"stall_s": stall_s, "durable_s": time.perf_counter() - began}
        remove(self._target)
        return found

    def _torch_save(self, state: dict[str, Any]) -> Wait:
        torch.save(state, self._target)
        sync_file(self._target)  # torch does not: without it nothing is durable
        sync_directory(self._target.parent)
        return lambda: None

    def _dcp_save(self, state: dict[str, Any]) -> Wait:
        save(state, checkpoint_id=self._target, no_dist=True)
        return lambda: None

    def _dcp_save_best(self, state: dict[str, Any]) -> Wait:
        save(state, storage_writer=self._writer(), no_dist=True)
        return lambda: None

    def _dcp_async(self, state: dict[str, Any]) -> Wait:
        return _blocking(async_save(state, checkpoint_id=self._target, no_dist=True))

    def _dcp_async_best(self, state: dict[str, Any]) -> Wait:
        """The stager kept, so that its memory is faulted once."""
        return _blocking(async_save(state, storage_writer=self._writer(), async_stager=self._stager, no_dist=True))

    def _writer(self) -> FileSystemWriter:
        return FileSystemWriter(self._target, thread_count=2)

    def end(self) -> None:
        if self._stager is not None:
            self._stager.close()


def _blocking(answer: Future[Any] | AsyncSaveResponse) -> Wait:
    """Staging happened in the call, so that its return is when training goes on; what is left is the upload."""
    assert not isinstance(answer, AsyncSaveResponse)
    return answer.result


if __name__ == "__main__":
    serve(Peer())
