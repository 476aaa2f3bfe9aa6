"""What the hardware allows: the copy, the write, the checked copy back and the read, with nothing around them."""

from __future__ import annotations

import contextlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from awscrt import checksums

from benchmarks import shm
from benchmarks.files import remove
from benchmarks.serving import serve
from benchmarks.state import SIZES, build, tensors

_WRITE_BYTES = 16 << 20
_BLOCK_BYTES = 4 << 20


class Floors:
    """Holds the state, and one faulted mapping of its size that stands for the arena and for the image."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    def setup(self, size: str, threads: int, disk: str, memory: str, image: str = "") -> dict[str, Any]:
        """With `image`, that file in shared memory is what `load` maps; otherwise one of the state's size is made."""
        torch.set_num_threads(threads)
        self._tensors = list(tensors(build(SIZES[size], seed=1)))
        self._starts, self._bytes = shm.offsets(self._tensors)
        self._file = Path(disk) / "floor"
        self._image = Path(image or f"{memory}/floor")
        if not image:
            self._stack.callback(self._image.unlink, missing_ok=True)
            self._arena = self._stack.enter_context(shm.mapped(self._image, self._bytes))
            shm.fault(self._arena)
            self._slots = shm.views(self._arena, self._tensors, self._starts)
        return {"bytes": self._bytes, "tensors": len(self._tensors)}

    def copy(self) -> dict[str, Any]:
        """All tensors into the faulted mapping, in one call."""
        began = time.perf_counter()
        torch._foreach_copy_(self._slots, self._tensors)
        return {"s": time.perf_counter() - began}

    def write(self) -> dict[str, Any]:
        """The mapping to a new file, O_DIRECT, then fsync."""
        began = time.perf_counter()
        fd = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DIRECT, 0o600)
        try:
            for start in range(0, self._bytes, _WRITE_BYTES):
                os.pwrite(fd, self._arena[start : start + _WRITE_BYTES], start)
            os.fsync(fd)
        finally:
            os.close(fd)
        found = {"s": time.perf_counter() - began}
        remove(self._file)
        return found

    def read(self, path: str) -> dict[str, Any]:
        """A file into the faulted mapping, O_DIRECT."""
        began = time.perf_counter()
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            n_bytes = min(os.fstat(fd).st_size // shm.PAGE * shm.PAGE, self._bytes)
            for start in range(0, n_bytes, _WRITE_BYTES):
                os.preadv(fd, [self._arena[start : min(start + _WRITE_BYTES, n_bytes)]], start)
        finally:
            os.close(fd)
        return {"s": time.perf_counter() - began, "bytes": n_bytes}

    def load(self, workers: int) -> dict[str, Any]:
        """Map the image anew, checksum every block and copy it into the tensors, each worker a contiguous half."""
        torch.set_num_threads(1)  # workers are the parallelism
        began = time.perf_counter()
        with shm.mapped(self._image) as view, ThreadPoolExecutor(workers) as pool:
            list(pool.map(lambda part: self._load_part(view, part), self._parts(workers)))
            elapsed_s = time.perf_counter() - began  # unmapping is nobody's wait
        return {"s": elapsed_s}

    def _parts(self, workers: int) -> list[range]:
        """Tensors split where the bytes are, not the count."""
        borders = [self._bytes * i // workers for i in range(workers)]
        firsts = [next(i for i, start in enumerate(self._starts) if start >= border) for border in borders]
        return [range(a, b) for a, b in zip(firsts, [*firsts[1:], len(self._starts)], strict=True)]

    def _load_part(self, view: memoryview, part: range) -> None:
        source = torch.frombuffer(view, dtype=torch.uint8)
        for i in part:
            target, begin = shm.raw(self._tensors[i]), self._starts[i]
            for at in range(0, len(target), _BLOCK_BYTES):
                end = min(at + _BLOCK_BYTES, len(target))
                checksums.crc64nvme(view[begin + at : begin + end])
                target[at:end].copy_(source[begin + at : begin + end])

    def end(self) -> None:
        """Remove the mapping's file. The tensors keep the mapping itself alive until exit."""
        self._slots = []
        with contextlib.suppress(BufferError):
            self._stack.close()


if __name__ == "__main__":
    serve(Floors())
