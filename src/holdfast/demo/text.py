"""The training text: the sources of Python's standard library, which every machine that runs this has."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

_LEFT_OUT = frozenset({"site-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__", "encodings"})


def standard_library(limit_bytes: int = 4 << 20) -> Tensor:
    """The library's modules one after another, in a fixed order, as a vector of bytes."""
    text = bytearray()
    for path in _modules():
        text += path.read_bytes()
        if len(text) >= limit_bytes:
            break
    return torch.frombuffer(text, dtype=torch.uint8)


def _modules() -> Iterator[Path]:
    for folder, subfolders, names in os.walk(sysconfig.get_path("stdlib")):
        subfolders[:] = sorted(set(subfolders) - _LEFT_OUT)
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(".py"))


class Batches:
    """Batches as a pure function of (seed, step, rank): nothing about the data has to be saved."""

    def __init__(self, text: Tensor, *, batch: int, context: int, rank: int, seed: int) -> None:
        self.text = text
        self.batch = batch
        self.context = context
        self.rank = rank
        self.seed = seed

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Tokens of this rank at this step, and the same text one byte further on."""
        dice = torch.Generator().manual_seed((self.seed << 40) + (step << 16) + self.rank)
        starts = torch.randint(len(self.text) - self.context - 1, (self.batch, 1), generator=dice)
        window = self.text[starts + torch.arange(self.context + 1)].long()
        return window[:, :-1], window[:, 1:]
