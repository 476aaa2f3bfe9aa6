"""A small model really training, one thread or two, while the large state beside it is saved and flushed."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from benchmarks.ours import Ours
from benchmarks.serving import serve

_AFTER_STEPS = 5


class Training(Ours):
    """The large state is ballast that is saved; the small model is what runs and is saved with it."""

    def setup(self, size: str, threads: int, home: str, seed: int = 1) -> dict[str, Any]:
        """As `Ours`, with a model whose step takes a few tens of milliseconds."""
        found = super().setup(size, threads, home, seed)
        torch.manual_seed(seed)
        layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True)
        self._model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-4)
        self._input = torch.randn(4, 96, 256)
        self._state |= {"small": self._model, "small_optimizer": self._optimizer}
        self.quiet(steps=10)
        return found

    def _train(self) -> float:
        began = time.perf_counter()
        self._optimizer.zero_grad()
        (self._model(self._input) - self._input).square().mean().backward()
        self._optimizer.step()
        return time.perf_counter() - began

    def quiet(self, steps: int) -> dict[str, Any]:
        """Steps with nothing under way."""
        return {"steps_s": [self._train() for _ in range(steps)]}

    def flushing(self) -> dict[str, Any]:
        """Steps from the return of `save` until it is on the disk, and a few more while the one before is pruned."""
        self._step += 1
        began = time.perf_counter()
        handle = self._ckpt.save(self._step, self._state)
        found = {"stall_s": time.perf_counter() - began}
        assert handle is not None
        steps_s = []
        while not handle.done():
            steps_s.append(self._train())
        durable_s = time.perf_counter() - began
        if handle.error is not None:
            raise handle.error
        steps_s += [self._train() for _ in range(_AFTER_STEPS)]
        self._settle()
        return found | {"durable_s": durable_s, "steps_s": steps_s}


if __name__ == "__main__":
    serve(Training())
