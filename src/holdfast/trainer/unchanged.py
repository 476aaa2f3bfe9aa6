"""Whether live tensors still have the bytes that were staged. Never asks a version counter: writes can be hidden.

In this process's memory the bytes themselves are compared, on all cores of the rank: as quick as the copy it saves. On
other devices a fingerprint is computed where the tensor is, and compared with the one it had when it was staged: two
sums of 64 bits of words mixed with their places. A change goes unnoticed with a chance of about 1 in 2^64, unless it is
made on purpose.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from holdfast.trainer.move import is_plain_memory, on_threads

_PIECE_BYTES = 8 << 20
_CHUNK_WORDS = 1 << 22
"""The temporaries of a fingerprint are bounded by this."""
_MIX = (-7046029254386353131, -4658895280553007687, -7723592293110705685)

_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_memcmp.restype = ctypes.c_int


def different(live: Sequence[torch.Tensor], staged: Sequence[torch.Tensor], threads: int) -> list[int]:
    """The places at which a tensor's bytes are not those staged. All are in this process's memory, of equal shapes."""
    kept = [x if is_plain_memory(x) else _plain(x) for x in live]
    found: set[int] = set()
    pieces = [
        (i, x.data_ptr() + at, y.data_ptr() + at, min(_PIECE_BYTES, x.nbytes - at))
        for i, (x, y) in enumerate(zip(kept, staged, strict=True))
        for at in range(0, x.nbytes, _PIECE_BYTES)
    ]
    work = iter(pieces)

    def drain() -> None:
        for i, a, b, n_bytes in work:  # the next item of a list's iterator goes to one thread
            if i not in found and _memcmp(a, b, n_bytes) != 0:
                found.add(i)

    on_threads(drain, threads if sum(n for *_, n in pieces) > _PIECE_BYTES else 1)
    return sorted(found)


def fingerprints(tensors: Sequence[torch.Tensor]) -> list[tuple[int, int]]:
    """Of the bytes of each tensor, computed on its device."""
    by_device: dict[torch.device, list[int]] = {}
    for i, tensor in enumerate(tensors):
        by_device.setdefault(tensor.device, []).append(i)
    found: list[tuple[int, int]] = [(0, 0)] * len(tensors)
    with torch.no_grad():
        for places in by_device.values():
            # One way back from the device for all of its tensors.
            for i, (a, b) in zip(places, torch.stack([_mixed(tensors[i]) for i in places]).tolist(), strict=True):
                found[i] = a, b
    return found


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().resolve_conj().resolve_neg().contiguous()


def _mixed(tensor: torch.Tensor) -> torch.Tensor:
    """Two sums of words that are mixed with their places."""
    data = _plain(tensor).reshape(-1).view(torch.uint8)
    words = data[: data.numel() - data.numel() % 8]
    words = (words if words.storage_offset() % 8 == 0 else words.clone()).view(torch.int64)
    rest = data[words.numel() * 8 :].to(torch.int64)
    total = torch.zeros(2, dtype=torch.int64, device=tensor.device)
    at = 0
    for part in (*words.split(_CHUNK_WORDS), rest):
        places = torch.arange(at, at + part.numel(), dtype=torch.int64, device=tensor.device)
        mixed = part + places * _MIX[0]
        mixed = (mixed ^ ((mixed >> 32) & 0xFFFFFFFF)) * _MIX[1]
        mixed = (mixed ^ ((mixed >> 29) & 0x7FFFFFFFF)) * _MIX[2]
        mixed ^= (mixed >> 32) & 0xFFFFFFFF
        total += torch.stack([mixed.sum(), (mixed * (2 * places + 1)).sum()])
        at += part.numel()
    return total
