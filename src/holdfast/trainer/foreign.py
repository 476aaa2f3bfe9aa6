"""`holdfast.load`: a checkpoint of any run into a live state, without an agent and without owning the run."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch.distributed as dist

from holdfast.errors import HoldfastError, UsageError
from holdfast.model.identity import CheckpointId
from holdfast.model.manifest import TensorRecord
from holdfast.trainer.apply import plan_load, ranks_needed
from holdfast.trainer.archive import open_archive
from holdfast.trainer.differences import Differences, warn_of
from holdfast.trainer.opened import Opened
from holdfast.trainer.selection import Selection


class LoadedStep(int):
    """The step that `holdfast.load` took: a plain int, which also knows more.

    Attributes:
        checkpoint: its attempt and step.
        differences: what `strict=False` passed over.
        read_bytes: how much of the checkpoint's images was read.
    """

    checkpoint: CheckpointId
    differences: Differences
    read_bytes: int


def load(
    url: str,
    state: dict[str, Any],
    *,
    step: int | None = None,
    only: Collection[str] | None = ("model",),
    strict: bool = True,
) -> LoadedStep | None:
    """Load a checkpoint of any run into `state`, in place: a warm start, an evaluation, another job's weights.

    Reads from the tier at `url`, block by block: only what is needed of each image, all of it proven by checksum before
    it is copied. No agent takes part, nothing is claimed or written; the run may be another's, live, or read-only. Not
    collective: under torch.distributed each rank that calls it reads for itself, with its own rank and world size.

    Args:
        url: a tier of the run: `"file:///data/run7"`. Only what is committed there is seen. The path of a
            `holdfast.toml` stands for the home of its run.
        state: as for `Checkpointer.load`. Keys that the checkpoint has besides are not asked for.
        step: this one of the lineage; None: the newest that loads.
        only: keys of the state, or dotted names below them, to load; None: all that the state has.
        strict: whether what is asked for must be the same on both sides; if not, what fits is loaded, a warning tells
            of the rest, and the `differences` of the answer list it.

    Returns: the step; None when there is no attempt, manifest or image at `url`.
    Raises: StructureError before anything is copied; LoadError when something is there and nothing (or not that step)
        loads; NotFoundError when nothing is at `url`; TierError.
    """
    with open_archive(url) as archive:
        job = _Load(state, Selection(only if only is not None else _keys(state)), strict)
        try:
            taken = archive.take(step, job.run)
        except HoldfastError as e:
            if job.touched:
                e.message += " (the live state is undefined now; it can be loaded again)"
            raise
        if taken is None:
            return None
        checkpoint, differences = taken
        loaded = LoadedStep(checkpoint.step)
        loaded.checkpoint, loaded.differences, loaded.read_bytes = checkpoint, differences, archive.read_bytes
    warn_of(differences, checkpoint)
    return loaded


class _Load:
    """One load into one state. `touched`: something was copied."""

    def __init__(self, state: dict[str, Any], selection: Selection, strict: bool) -> None:
        self.touched = False
        self._state, self._selection, self._strict = state, selection, strict
        distributed = dist.is_available() and dist.is_initialized()
        self._rank = dist.get_rank() if distributed else 0
        self._world_size = dist.get_world_size() if distributed else 1

    def run(self, checkpoint: Opened) -> Differences:
        """Fill the state. Raises: see `load`."""
        before = checkpoint.manifest.world_size
        ranks = ranks_needed(self._state, before, rank=self._rank, world_size=self._world_size)

        def wanted(tensor: TensorRecord) -> bool:
            return self._selection.takes(tensor.fqn) and tensor.owner_rank in (None, *ranks)

        images = checkpoint.images_for(wanted, ranks)
        plan = plan_load(
            self._state,
            checkpoint.sources(images, ranks),
            rank=self._rank,
            world_size=self._world_size,
            strict=self._strict,
            only=self._selection,
        )
        self.touched = True
        plan.filling.fill_from(images)
        plan.finish()
        return plan.differences


def _keys(state: object) -> list[str]:
    """What is asked for when nothing is said: what the state has."""
    if not isinstance(state, dict) or not state:
        raise UsageError(f"the state is {state!r:.80}", hint='pass a dict with something in it: {"model": model}')
    return list(state)
