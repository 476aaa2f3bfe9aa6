"""Moves bytes of ordinary memory on several cores.

torch divides a copy over its own threads, and under torchrun it has one; while training waits for a save or a load, the
other cores the process may use have nothing to do.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

Move = tuple[int, int, int]
"""Address to, address from, bytes: as `memmove` takes them."""
_PIECE_BYTES = 8 << 20


def cores(ranks_here: int) -> int:
    """How many cores one of so many processes of this node may use while training waits."""
    return max(1, len(os.sched_getaffinity(0)) // ranks_here)


def is_plain_memory(tensor: torch.Tensor) -> bool:
    """Whether the bytes of the tensor are one run of this process's memory, in order."""
    return (
        tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
        and not tensor.is_conj()
        and not tensor.is_neg()
    )


def move(moves: Sequence[Move], threads: int) -> None:
    """Perform all moves. Whoever asks keeps both sides alive meanwhile."""
    queue = iter(list(_pieces(moves)))

    def drain() -> None:
        for piece in queue:  # the next item of a list's iterator goes to one thread
            ctypes.memmove(*piece)

    on_threads(drain, threads)


def on_threads(work: Callable[[], None], threads: int) -> None:
    """Run the same work in this thread and `threads - 1` others; an error of any is raised when all have ended."""
    if threads < 2:
        return work()
    with ThreadPoolExecutor(threads - 1, thread_name_prefix="holdfast-move") as pool:
        others = [pool.submit(work) for _ in range(threads - 1)]
        work()
    for other in others:
        other.result()


def _pieces(moves: Sequence[Move]) -> Iterator[Move]:
    """Small enough that all threads end at about the same time."""
    for to, source, n_bytes in moves:
        for start in range(0, n_bytes, _PIECE_BYTES):
            yield to + start, source + start, min(_PIECE_BYTES, n_bytes - start)
