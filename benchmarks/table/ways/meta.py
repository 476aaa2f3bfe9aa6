"""torch_checkpointing: staging and a writer process, by Meta."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch_checkpointing import AsyncCheckpointSaverConfig, CheckpointWriterConfig
from torch_checkpointing.checkpoint_manager import CheckpointManager
from torch_checkpointing.checkpoint_process import CheckpointProcessConfig
from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

from benchmarks.table.ways.way import Flight, Job, Numbered, barrier, state_dicts

_START_S = 180
"""How long its process may take to start; its default of 30 s is short for a loaded machine."""


class TorchCheckpointing(Numbered):
    """`plain`: as it comes; `default`: O_DIRECT off, as it cannot write here with it; `best`: two writer threads, too.

    Staging goes on while training does; `optimizer.step()` waits for it, under the library's own lock.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        threads = 2 if job.setting == "best" else 1
        self._manager: Any = CheckpointManager(
            CheckpointManager.Config(
                save=AsyncCheckpointSaverConfig(
                    writer_config=CheckpointWriterConfig(file_write_max_threads=threads),
                    process_config=CheckpointProcessConfig(subprocess_init_timeout_secs=_START_S),
                ),
                storage_config=LocalFileSystemStorageConfig(use_direct_io=job.setting == "plain"),
            )
        )

    def prepare(self) -> None:
        """`best`: its staging memory made beforehand, as ours is."""
        if self.job.setting == "best":
            self._manager.prewarm_staging(state_dicts(self.job))

    def save(self) -> Flight:
        future = self._manager.save(str(self.next_target()), state_dicts(self.job))

        def work() -> None:
            future.result()
            self.make_durable()

        return Flight(work)

    def guard(self) -> AbstractContextManager[object]:
        return self._manager.lock()  # type: ignore[no-any-return]

    def load(self) -> None:
        self._manager.load(str(self.target), into=state_dicts(self.job))  # in place: these are the live tensors
        barrier(self.job)

    def end(self) -> None:
        self._manager.close()
