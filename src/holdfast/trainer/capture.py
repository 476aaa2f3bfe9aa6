"""What a state holds at this moment: tensors by name, plain values by path.

Tensors are found again by identity: as long as the same objects stand in the same places, nothing is laid out anew.
Plain values change by value, so they are collected at every save.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from holdfast.trainer import values
from holdfast.trainer.modules import PlainModule, identical
from holdfast.trainer.optimizers import OptimizerBlock
from holdfast.trainer.picture import Picture
from holdfast.trainer.saved import OWN_PATHS
from holdfast.trainer.structure import Structure
from holdfast.trainer.walk import Walk, Where


@dataclass(frozen=True, slots=True)
class Captured:
    """A state, seen once.

    `structure`, `tensors` and `own` are the same objects as at the last refresh as long as nothing of theirs changed.
    `tree` and `own_tree` are plain values by path, a `TensorRef` where a tensor stands.
    """

    structure: Structure
    tensors: Mapping[str, torch.Tensor]
    own: Mapping[str, torch.Tensor]
    tree: Mapping[str, Any]
    own_tree: Mapping[str, Any]
    own_paths: Sequence[str]
    """Where `per_rank` marks stand."""
    owned: frozenset[str] | None = None
    """Names of the parameters that optimizers of the state own; None when it has no optimizer."""

    def payload(self, rank: int) -> bytes:
        """The plain values of this rank's image: rank 0's has everything, the others their own.

        Raises: UnsupportedValueError, with the path.
        """
        whole: dict[str, Any] = dict(self.tree) if rank == 0 else {}
        whole.update(self.own_tree)
        if self.own_paths:
            whole[OWN_PATHS] = sorted(self.own_paths)
        return values.encode(whole)


class Capture:
    """Finds the tensors and values of one state again and again.

    Invariants: holds on to the tensors of the last refresh until the next one.
    Threads: one.
    """

    def __init__(self) -> None:
        self._modules: Mapping[Where, PlainModule] = {}
        self._optimizers: Mapping[Where, OptimizerBlock] = {}
        self._last: tuple[Picture, Captured] | None = None
        self._owned_by: list[OptimizerBlock] = []
        self._owned_names: frozenset[str] = frozenset()

    def refresh(self, state: Mapping[str, Any]) -> Captured:
        """The state as it is now.

        Raises: UnsupportedValueError: something that cannot be saved, or two things with one name, with the path.
        """
        walk = Walk(self._modules, self._optimizers).run(state)
        self._modules, self._optimizers = walk.modules, walk.optimizers
        before, last = self._last if self._last is not None else (None, None)
        picture = before.next(walk.blocks) if before is not None else None
        if picture is None or before is None or last is None:
            picture = Picture.of(walk.blocks)
            structure = picture.structure()
            tensors, own = picture.tensors_of(structure)
        else:
            structure, tensors, own = last.structure, last.tensors, last.own
            if picture is not before:
                tensors, own = picture.tensors_after(before, tensors, own)
        captured = Captured(structure, tensors, own, walk.tree, walk.own_tree, walk.own_paths, self._owned())
        self._last = picture, captured
        return captured

    def _owned(self) -> frozenset[str] | None:
        blocks = list(self._optimizers.values())
        if not identical(blocks, self._owned_by):
            self._owned_by = blocks
            self._owned_names = frozenset().union(*(b.named.parameter_names for b in blocks))
        return self._owned_names if blocks else None

    def forecast(self, state: Mapping[str, Any]) -> Structure:
        """The structure after the first step: optimizers are asked what state they will create, none is stepped.

        Raises: as `refresh`.
        """
        walk = Walk(self._modules, self._optimizers, foretell=True).run(state)
        return Picture.of(walk.blocks).structure()
