"""The training text: the sources of Python's standard library, which every machine that runs this has."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch
from torch import Tensor

_LEFT_OUT = frozenset({"site-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__", "encodings"})


def standard_library(limit_bytes: int = 8 << 20) -> Tensor:
    """The library's modules one after another, in the order of their names, as a vector of bytes."""
    root = Path(sysconfig.get_path("stdlib"))
    text = bytearray()
    for path in sorted(root.rglob("*.py")):
        if not _LEFT_OUT.intersection(path.relative_to(root).parts):
            text += path.read_bytes()
        if len(text) >= limit_bytes:
            break
    return torch.frombuffer(text, dtype=torch.uint8)


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
