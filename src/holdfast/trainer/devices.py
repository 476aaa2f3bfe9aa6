"""Copies between this process's memory and other devices: page-locked memory, streams beside the one that computes.

Nothing here is reached without such a device, and nothing is imported for one.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from operator import attrgetter
from typing import Any

import torch

log = logging.getLogger("holdfast")

Ways = dict[tuple[torch.device, torch.device], tuple[list[torch.Tensor], list[torch.Tensor]]]
_device = attrgetter("device")
_streams: dict[torch.device, torch.cuda.Stream] = {}
_REGISTER_PORTABLE = 1
"""cudaHostRegisterPortable: pinned for every device of the process."""


def copy_between_devices(destinations: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    """Copy each source into its destination. On return every byte has arrived."""
    ways = _ways(destinations, sources)
    waits: list[Callable[[], None]] = []
    try:
        # Other devices first: they copy while the processor copies its own.
        for way in sorted(ways, key=lambda way: way[0].type == way[1].type == "cpu"):
            device = next((d for d in way if d.type != "cpu"), None)
            with nullcontext() if device is None else _beside(device, waits):
                torch._foreach_copy_(*ways[way], non_blocking=device is not None)
    finally:  # after an error, too: a slot that is given back must not be written into any more
        with ExitStack() as stack:  # each is waited for, whatever another one raises
            for wait in waits:
                stack.callback(wait)


def _ways(destinations: list[torch.Tensor], sources: list[torch.Tensor]) -> Ways:
    """Pairs by where they go and where they are."""
    places = [set(map(_device, tensors)) for tensors in (destinations, sources)]
    if all(len(devices) == 1 for devices in places):
        return {(places[0].pop(), places[1].pop()): (destinations, sources)}
    ways: Ways = {}
    for d, s in zip(destinations, sources, strict=True):
        to, of = ways.setdefault((d.device, s.device), ([], []))
        to.append(d)
        of.append(s)
    return ways


def _beside(device: torch.device, waits: list[Callable[[], None]]) -> AbstractContextManager[Any]:
    """Where copies of a device are given; `waits` gets what waits for them.

    On CUDA a stream beside the one that computes, kept for good: a copy engine is free while kernels run. It begins
    when what was given to the computing stream until now has ended, and that stream goes on when the copies have.
    """
    if device.type != "cuda":
        waits.append(lambda: torch.accelerator.current_stream(device).synchronize())
        return nullcontext()
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)
    side, computing = _streams[device], torch.cuda.current_stream(device)
    side.wait_stream(computing)

    def wait() -> None:
        done = side.record_event()
        computing.wait_event(done)
        done.synchronize()

    waits.append(wait)
    return torch.cuda.stream(side)


def page_lock_for(tensors: Iterable[torch.Tensor]) -> Callable[[memoryview], Callable[[], None]] | None:
    """How slots are page-locked for copies of these tensors; None where none of them is on a CUDA device."""
    device = next((t.device for t in tensors if t.device.type == "cuda"), None)
    return None if device is None else partial(page_lock, device)


def page_lock(device: torch.device, buffer: memoryview) -> Callable[[], None]:
    """Lock the pages of a slot for CUDA, once: copies then run at the speed of the bus. Answers what lets go of them,
    to be called before the memory is unmapped.

    A driver that refuses (a limit on locked memory, a container) costs speed, not the save: it is logged.

    Args:
        device: one that the process uses. A thread that says none gets the first, which would then hold a context of
            every rank.
    """
    runtime: Any = torch.cuda.cudart()
    address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    with torch.cuda.device(device):
        error = int(runtime.cudaHostRegister(address, len(buffer), _REGISTER_PORTABLE))
    if error:
        log.warning(
            "CUDA cannot lock %d bytes of the arena (error %d): saves from the GPU are slower; raise `ulimit -l`",
            len(buffer),
            error,
        )
        return lambda: None

    def unlock() -> None:
        runtime.cudaHostUnregister(address)

    return unlock
