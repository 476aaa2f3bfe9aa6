"""What a way to save and load is, for the program that measures it."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist

from benchmarks.files import sync_directory, sync_file


@dataclass(frozen=True, slots=True)
class Job:
    """What a way is given: the state of this rank, a place on the disk, who we are, and its setting.

    `state` maps names to modules and optimizers; `module` and `optimizer` name the two that are large.
    """

    state: dict[str, Any]
    disk: Path
    rank: int
    world_size: int
    setting: str

    @property
    def alone(self) -> bool:
        return self.world_size == 1


class Flight:
    """What of a save goes on behind training: waited for, and made durable, in a thread of its own.

    `ended_at` is when the last byte was durable; `result` raises what went wrong.
    """

    def __init__(self, work: Callable[[], object]) -> None:
        self.ended_at = 0.0
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as e:  # torch's CheckpointException is no Exception; `result` raises it
            self._error = e
        self.ended_at = time.perf_counter()

    def done(self) -> bool:
        return not self._thread.is_alive()

    def result(self, timeout_s: float = 240.0) -> None:
        """Wait. Raises: what the work raised; TimeoutError."""
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise TimeoutError(f"the save was not durable after {timeout_s:g} s")
        if self._error is not None:
            raise self._error


class Way(Protocol):
    """One way to save and to load. Every rank has one and calls the same methods in the same order."""

    def prepare(self) -> None:
        """What a user would do once at the start of training."""

    def save(self) -> Flight:
        """Save; returns when training may go on."""

    def guard(self) -> AbstractContextManager[object]:
        """What a user has to put around `optimizer.step()` while a save is under way."""

    def files(self) -> list[Path]:
        """What the newest save left on the disk."""

    def forget_old(self) -> None:
        """Remove all but the newest save, and wait until that is done."""

    def begin_loading(self) -> None:
        """What comes before a load that finds nothing of an earlier one in this process or on this node's memory."""

    def load(self) -> None:
        """Load the newest save into the state that is there."""

    def end(self) -> None:
        """Let go of everything."""


class Numbered:
    """For libraries that save to a path: a new path per save, older ones removed by us, rank 0 for all."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._number = max((int(p.name) for p in self._root.glob("[0-9]*")), default=0) if self._root.exists() else 0

    @property
    def _root(self) -> Path:
        return self.job.disk / "peer"

    @property
    def target(self) -> Path:
        return self._root / f"{self._number:06d}"

    def next_target(self) -> Path:
        """The path of the save that begins now."""
        self._root.mkdir(parents=True, exist_ok=True)
        self._number += 1
        return self.target

    def prepare(self) -> None:
        """Nothing, for most."""

    def guard(self) -> AbstractContextManager[object]:
        return contextlib.nullcontext()

    def files(self) -> list[Path]:
        return [p for p in self.target.rglob("*") if p.is_file()] if self.target.is_dir() else [self.target]

    def forget_old(self) -> None:
        if self.job.rank == 0:
            for path in self._root.glob("[0-9]*"):
                if path != self.target:
                    _remove_tree(path)
            sync_directory(self._root)

    def begin_loading(self) -> None:
        """Nothing, for most."""

    def end(self) -> None:
        """Nothing, for most."""

    def make_durable(self) -> None:
        """fsync of every file and directory of the newest save, by rank 0: the same for every library."""
        if self.job.rank == 0:
            sync_tree(self.target)


def sync_tree(path: Path) -> None:
    """fsync a file, or every file and directory below a directory, and the directory above."""
    if path.is_dir():
        for below in sorted(path.rglob("*")):
            (sync_directory if below.is_dir() else sync_file)(below)
        sync_directory(path)
    else:
        sync_file(path)
    sync_directory(path.parent)


def state_dicts(job: Job) -> dict[str, Any]:
    """The whole state as most libraries take it: nested dicts of tensors and plain values."""
    return {name: part.state_dict() for name, part in job.state.items()}


def load_state_dicts(job: Job, loaded: dict[str, Any]) -> None:
    """Give it back to modules and optimizers."""
    for name, part in job.state.items():
        part.load_state_dict(loaded[name])


def barrier(job: Job) -> None:
    """All ranks have come here."""
    if not job.alone:
        dist.barrier()


def _remove_tree(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
