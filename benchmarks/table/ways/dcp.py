"""torch's distributed checkpoint: save, and async_save with a thread and with a process."""

from __future__ import annotations

import uuid
import warnings
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, AsyncSaveResponse, async_save, save

from benchmarks.table.ways.plain import pairs
from benchmarks.table.ways.way import Flight, Job, Numbered, state_dicts

_WRITER_THREADS = 2


class _Dcp(Numbered):
    def __init__(self, job: Job) -> None:
        super().__init__(job)
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is what is meant

    @property
    def best(self) -> bool:
        return self.job.setting == "best"

    def state(self) -> dict[str, Any]:
        """By name where ranks share a state, as torch's own tutorials do it."""
        if self.job.alone:
            return state_dicts(self.job)
        return {name: list(get_state_dict(*pair)) for name, pair in pairs(self.job).items()}

    def writer(self) -> FileSystemWriter:
        """Default: one thread. It syncs its files itself."""
        return FileSystemWriter(self.next_target(), thread_count=_WRITER_THREADS if self.best else 1)

    def load(self) -> None:
        state = self.state()
        load(state, storage_reader=FileSystemReader(self.target), no_dist=self.job.alone)
        if self.job.alone:
            return  # in place: these are the live tensors
        for name, (module, optimizer) in pairs(self.job).items():
            model, optim = state[name]
            set_state_dict(module, optimizer, model_state_dict=model, optim_state_dict=optim)


class DcpSave(_Dcp):
    """`best`: two writer threads."""

    def save(self) -> Flight:
        save(self.state(), storage_writer=self.writer(), no_dist=self.job.alone)
        return Flight(self.make_durable)


class _Async(_Dcp):
    """`best`: two writer threads, and one stager for all saves, with shared memory, so that its memory is faulted once.

    There is no device here, so pinned memory and asynchronous staging have nothing to do.
    """

    kind: AsyncCheckpointerType

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._stager: DefaultStager | None = None
        # Why: its collectives run behind training's, and would meet them in one group.
        self._group = None if job.alone else dist.new_group(backend="gloo")
        if self.best:
            options = StagingOptions(
                use_pinned_memory=False, use_shared_memory=True, use_async_staging=False, use_non_blocking_copy=False
            )
            self._stager = DefaultStager(options)

    def save(self) -> Flight:
        answer = async_save(
            self.state(),
            storage_writer=self.writer(),
            async_checkpointer_type=self.kind,
            async_stager=self._stager,
            process_group=self._group,
            no_dist=self.job.alone,
        )
        upload = answer.upload_completion if isinstance(answer, AsyncSaveResponse) else answer
        if isinstance(answer, AsyncSaveResponse):
            answer.staging_completion.result()

        def work() -> None:
            upload.result()
            self.make_durable()

        return Flight(work)

    def end(self) -> None:
        if self._stager is not None:
            self._stager.close()


class DcpThread(_Async):
    """async_save whose writer is a thread of the trainer."""

    kind = AsyncCheckpointerType.THREAD


class DcpProcess(_Async):
    """async_save whose writer is a process, which needs a process group also where one rank is all."""

    kind = AsyncCheckpointerType.PROCESS

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        if not dist.is_initialized():
            store = job.disk / f"store-{uuid.uuid4().hex}"
            dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
