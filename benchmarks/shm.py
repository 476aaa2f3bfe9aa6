"""Shared memory for the floors: a file mapped and faulted, and tensors that look into it."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

ALIGNMENT = 64
PAGE = 4096


def offsets(tensors: Iterable[torch.Tensor]) -> tuple[list[int], int]:
    """Where each tensor begins, 64-byte aligned, and how long the whole is, in whole pages."""
    found, end = [], 0
    for t in tensors:
        found.append(end)
        end += -(-t.nbytes // ALIGNMENT) * ALIGNMENT
    return found, -(-end // PAGE) * PAGE


@contextlib.contextmanager
def mapped(path: Path, size_bytes: int = 0) -> Iterator[memoryview]:
    """The file, mapped: made with `size_bytes`, or as it is."""
    fd = os.open(path, os.O_RDWR | (os.O_CREAT if size_bytes else 0), 0o600)
    try:
        if size_bytes:
            os.ftruncate(fd, size_bytes)
        with mmap.mmap(fd, os.fstat(fd).st_size) as area, memoryview(area) as view:
            yield view
    finally:
        os.close(fd)


def fault(view: memoryview) -> None:
    """Touch every page once: fresh pages cost ten times the copy."""
    torch.frombuffer(view, dtype=torch.uint8).zero_()


def views(view: memoryview, tensors: Iterable[torch.Tensor], starts: list[int]) -> list[torch.Tensor]:
    """Tensors in the mapping with the shapes and dtypes of the given ones."""
    return [
        torch.frombuffer(view, dtype=t.dtype, count=t.numel(), offset=start).view(t.shape)
        for t, start in zip(tensors, starts, strict=True)
    ]


def raw(t: torch.Tensor) -> torch.Tensor:
    """The tensor's bytes, in place."""
    return t.view(-1).view(torch.uint8)
