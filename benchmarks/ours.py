"""Holdfast through its public names only, one order per sample."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch

import holdfast
from benchmarks.files import images, sync_directory
from benchmarks.serving import serve
from benchmarks.state import SIZES, build, fingerprint, state_bytes

_PREPARE_S, _PRUNE_S, _DURABLE_S = 180.0, 30.0, 120.0


class Ours:
    """A trainer whose state does not change: what is measured is what happens around it."""

    def __init__(self) -> None:
        self._checkpointer: holdfast.Checkpointer | None = None
        self._step = 0

    def setup(self, size: str, threads: int, home: str, seed: int = 1) -> dict[str, Any]:
        """Build the state. `keep_last=1`: at the disk's speed 100 saves would fill it."""
        torch.set_num_threads(threads)
        self._state = build(SIZES[size], seed=seed)
        self._home = Path(home)
        return {"bytes": state_bytes(self._state)}

    def attach(self) -> dict[str, Any]:
        """Make the Checkpointer: starts the agent if none answers."""
        began = time.perf_counter()
        self._checkpointer = holdfast.Checkpointer(f"file://{self._home}", keep_last=1)
        return {"s": time.perf_counter() - began}

    @property
    def _ckpt(self) -> holdfast.Checkpointer:
        assert self._checkpointer is not None
        return self._checkpointer

    def prepare(self) -> dict[str, Any]:
        """Prepare, and wait as training would until the arena is faulted."""
        began = time.perf_counter()
        self._ckpt.prepare(self._state)
        called_s = time.perf_counter() - began
        while not self._ckpt.prepared():
            if time.perf_counter() - began > _PREPARE_S:
                raise TimeoutError("the arena was not faulted in time")
            time.sleep(0.02)
        return {"s": called_s, "faulted_s": time.perf_counter() - began}

    def save(self) -> dict[str, Any]:
        """One save, followed until it is committed on the disk and the one before is gone."""
        self._step += 1
        began = time.perf_counter()
        handle = self._ckpt.save(self._step, self._state)
        stall_s = time.perf_counter() - began
        assert handle is not None
        handle.wait("durable", timeout_s=_DURABLE_S)
        durable_s = time.perf_counter() - began
        self._settle()
        return {"stall_s": stall_s, "durable_s": durable_s}

    def first(self, steady: int) -> dict[str, Any]:
        """The first save of this process, and the median of those that follow."""
        first_s = self.save()["stall_s"]
        later = [self.save()["stall_s"] for _ in range(steady)]
        return {"first_s": first_s, "steady_s": statistics.median(later), "later_s": later}

    def load(self) -> dict[str, Any]:
        """Load the newest step into the state that is there."""
        began = time.perf_counter()
        step = self._ckpt.load(self._state)
        return {"s": time.perf_counter() - began, "step": step}

    def fingerprint(self) -> dict[str, Any]:
        return {"value": fingerprint(self._state)}

    def close(self) -> dict[str, Any]:
        """Everything flushed and the arena given back."""
        self._ckpt.close()
        return {}

    def discard(self) -> dict[str, Any]:
        """The arena given back, nothing waited for."""
        self._ckpt.close(discard=True)
        return {}

    def _settle(self) -> None:
        """Wait until the older checkpoint is pruned, so that its removal falls into nobody's sample."""
        deadline = time.perf_counter() + _PRUNE_S
        while len(images(self._home)) > 1:
            if time.perf_counter() > deadline:
                raise TimeoutError("the checkpoint before was not pruned (keep_last=1)")
            time.sleep(0.01)
        sync_directory(self._home)

    def end(self) -> None:
        """Let go without waiting; the harness ends the agent."""
        if self._checkpointer is not None:
            self._checkpointer.close(discard=True)


if __name__ == "__main__":
    serve(Ours())
