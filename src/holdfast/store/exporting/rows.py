"""Whole tensors in row order, whatever pieces they are stored in, by windows that fit into memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from holdfast.errors import CorruptError
from holdfast.format.checksum import BLOCK_BYTES
from holdfast.model.rect import Rect
from holdfast.store.exporting.chosen import item_bytes
from holdfast.store.rects import pairs, parts
from holdfast.store.tensors import Bytes, StoredTensor

_MOST_BYTES = 128 * 2**20
_LEAST_PIECES = 2


def in_rows(tensor: StoredTensor) -> Iterator[Bytes]:
    """All bytes of a tensor, first row first. Raises: as `StoredTensor.read`.

    Memory: a window, at most 128 MiB, and what `Images` keeps. Where many pieces lie beside each other a window is
    larger, so that of each piece about a block is read at a time.
    """
    whole = Rect((0,) * len(tensor.record.shape), tensor.record.shape)
    if not whole.size:
        return
    size, rects = item_bytes(tensor), tensor.rects
    window_bytes = _window_bytes(rects)
    for window in parts(whole, lambda rect: rect.size * size <= window_bytes):
        yield _window(tensor, window, rects, size)


def _window(tensor: StoredTensor, window: Rect, rects: list[tuple[int, Rect]], size: int) -> Bytes:
    out = np.empty((*window.lengths, size), np.uint8)
    filled = 0
    for _, chunk, common in pairs([(0, window)], rects):
        at = [
            slice(o - base, o - base + n)
            for o, n, base in zip(common.offsets, common.lengths, window.offsets, strict=True)
        ]
        out[tuple(at)] = tensor.read(chunk, common).reshape(*common.lengths, size)
        filled += common.size
    if filled != window.size:
        raise CorruptError(f"no image holds all of {tensor.record.fqn!r}")
    return out.reshape(-1)


def _window_bytes(rects: list[tuple[int, Rect]]) -> int:
    """Pieces that begin in the same row lie beside each other."""
    rows = {rect.offsets[:1] for _, rect in rects}
    beside = -(-len(rects) // max(1, len(rows)))
    return min(_MOST_BYTES, BLOCK_BYTES * max(_LEAST_PIECES, beside))
