"""Holdfast, through its public names, as a bare URL sets it up; only the newest checkpoint is kept on the disk."""

from __future__ import annotations

import contextlib
import os
import time
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks.files import await_end_of_agents, images, sync_directory
from benchmarks.table.ways.way import Flight, Job, barrier
from holdfast import Checkpointer  # here, as every other way imports its library before anything is timed

_PREPARE_S, _PRUNE_S, _DURABLE_S = 180.0, 120.0, 240.0


class Holdfast:
    """Invariant: at most one Checkpointer is open."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._home = job.disk / "run"
        self._ckpt: Checkpointer | None = None
        self._step: int | None = None

    @property
    def checkpointer(self) -> Checkpointer:
        if self._ckpt is None:
            self._ckpt = Checkpointer(f"file://{self._home}", keep_last=1)
        return self._ckpt

    def prepare(self) -> None:
        """Prepare, and wait as training would until the arena is faulted."""
        self.checkpointer.prepare(self._job.state)
        deadline = time.monotonic() + _PREPARE_S
        while not self.checkpointer.prepared():
            if time.monotonic() > deadline:
                raise TimeoutError("the arena was not faulted in time")
            time.sleep(0.02)

    def save(self) -> Flight:
        self._step = 1 if self._step is None else self._step + 1
        handle = self.checkpointer.save(self._step, self._job.state)
        assert handle is not None
        return Flight(lambda: handle.wait("durable", timeout_s=_DURABLE_S))

    def guard(self) -> AbstractContextManager[object]:
        return contextlib.nullcontext()

    def files(self) -> list[Path]:
        """All of the run's; os.walk, because directories may be removed meanwhile."""
        return [Path(where) / name for where, _, names in os.walk(self._home) for name in names]

    def forget_old(self) -> None:
        """Wait until the agent has pruned the older one (`keep_last=1`), so that it falls into nobody's sample."""
        deadline = time.monotonic() + _PRUNE_S
        while len({path.parent for path in images(self._home)}) > 1:
            if time.monotonic() > deadline:
                raise TimeoutError("the checkpoint before was not pruned (keep_last=1)")
            time.sleep(0.01)
        if self._job.rank == 0:
            sync_directory(self._home)

    def begin_loading(self) -> None:
        """The arena given back and its agent gone, then a new agent: nothing is in memory."""
        if self._ckpt is not None:
            self._ckpt.close(discard=True)
            self._ckpt = None
        if self._job.rank == 0:
            await_end_of_agents(_arena_dir())
        barrier(self._job)
        _ = self.checkpointer

    def load(self) -> None:
        self._step = self.checkpointer.load(self._job.state)
        assert self._step is not None

    def end(self) -> None:
        """Let go without waiting; the harness ends the agent."""
        if self._ckpt is not None:
            self._ckpt.close(discard=True)


def _arena_dir() -> Path:
    return Path(os.environ["HOLDFAST_ARENA_DIR"])
