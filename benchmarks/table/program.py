"""The variant that the table measures: a training job of one or several ranks, and one way to save and load."""

from __future__ import annotations

import contextlib
import importlib
import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.files import forget_cached, sync_file
from benchmarks.serving import serve
from benchmarks.table.columns import AFTER_STEPS
from benchmarks.table.states import STATES, Training
from benchmarks.table.ways.way import Job, Way, barrier

_COPY_REPEATS = 3


class Program:
    """One rank. Orders come to all ranks at once, and each is the same on all of them."""

    def __init__(self) -> None:
        self._way: Way | None = None

    def setup(self, **s: Any) -> dict[str, Any]:
        """Join the others, build the state, train a little."""
        torch.set_num_threads(s["threads"])
        spec = STATES[s["state"]]
        if spec.ranks > 1:
            store = Path(s["disk"]) / f"store-{s['token']}"
            dist.init_process_group("gloo", init_method=f"file://{store}", rank=s["rank"], world_size=spec.ranks)
        self._training = Training(spec, quick=s["quick"], seed=s["seed"])
        self._job = Job(self._training.state, Path(s["disk"]), s["rank"], spec.ranks, s["setting"])
        module, _, name = s["way"].partition(":")
        self._make_way = getattr(importlib.import_module(f"benchmarks.table.ways.{module}"), name)
        self._steps(10)
        return {"bytes": self._training.size_bytes(), "tensors": self._training.tensor_count()}

    @property
    def way(self) -> Way:
        if self._way is None:
            self._way = self._make_way(self._job)
        return self._way

    def prepare(self) -> dict[str, Any]:
        """What a user does once at the start. Seconds."""
        began = time.perf_counter()
        self.way.prepare()
        return {"s": time.perf_counter() - began}

    def sample(self, quiet: int) -> dict[str, Any]:
        """Quiet steps, a save, steps until it is durable on all ranks and a few more."""
        quiet_s = self._steps(quiet)
        began = time.perf_counter()
        flight = self.way.save()
        stall_s = time.perf_counter() - began
        steps_s = []
        while not self._training.agreed(flight.done()):
            steps_s.append(self._training.step(self.way.guard))
        flight.result()
        steps_s += self._steps(AFTER_STEPS)
        barrier(self._job)
        self.way.forget_old()
        n_bytes = sum(_size(path) for path in self.way.files())
        return {
            "quiet_s": quiet_s,
            "stall_s": stall_s,
            "durable_s": flight.ended_at - began,
            "steps_s": steps_s,
            "bytes": n_bytes,
        }

    def copy_floor(self) -> dict[str, Any]:
        """Seconds of one `torch._foreach_copy_` of all tensors into faulted memory, the best of three."""
        targets, live = self._training.copies()
        found = []
        for _ in range(_COPY_REPEATS):
            began = time.perf_counter()
            torch._foreach_copy_(targets, live)
            found.append(time.perf_counter() - began)
        return {"s": min(found)}

    def first(self) -> dict[str, Any]:
        """The first save of this process, waited for."""
        barrier(self._job)
        began = time.perf_counter()
        flight = self.way.save()
        stall_s = time.perf_counter() - began
        flight.result()
        barrier(self._job)
        self.way.forget_old()
        return {"stall_s": stall_s}

    def load(self, cache: str) -> dict[str, Any]:
        """A load of other values than are there, timed. `cache`: "as is", "kept" or "dropped"."""
        self._training.spoil()
        if cache != "as is":
            self.way.begin_loading()
            self._set_cache(cache)
        barrier(self._job)
        began = time.perf_counter()
        self.way.load()
        return {"s": time.perf_counter() - began, "fingerprint": self._training.fingerprint()}

    def fingerprint(self) -> dict[str, Any]:
        return {"fingerprint": self._training.fingerprint()}

    def _set_cache(self, cache: str) -> None:
        """The page cache has all of the files, or nothing of them: for every way alike."""
        if self._job.rank:
            return
        for path in self.way.files():
            sync_file(path)
            if cache == "dropped":
                forget_cached(path)
            else:
                _read_through(path)

    def _steps(self, count: int) -> list[float]:
        guard = self.way.guard if self._way is not None else _no_guard
        return [self._training.step(guard) for _ in range(count)]

    def end(self) -> None:
        if self._way is not None:
            self._way.end()
        if dist.is_initialized():
            dist.destroy_process_group()


def _no_guard() -> Any:
    return contextlib.nullcontext()


def _size(path: Path) -> int:
    """Bytes of a file; none if it is being removed, as what led to the checkpoint before may be."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def _read_through(path: Path) -> None:
    buffer = bytearray(16 << 20)
    fd = os.open(path, os.O_RDONLY)
    try:
        while os.readv(fd, [buffer]):
            pass
    finally:
        os.close(fd)


if __name__ == "__main__":
    serve(Program())
