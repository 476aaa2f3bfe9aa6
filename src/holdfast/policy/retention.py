"""Retention: which committed checkpoints a tier keeps, and why. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from holdfast.model.identity import CheckpointId, Lineage


class Reason(Enum):
    """Why a checkpoint is kept or deleted, in words `prune` can print."""

    NEWEST = "the newest one is never deleted"
    PROTECTED = "protected"
    KEEP_ALL = "no limit is set"
    KEEP_LAST = "among the newest keep_last"
    KEEP_EVERY = "a multiple of keep_every_steps"
    BRANCH_YOUNG = "abandoned, but its successor has fewer than keep_last steps yet"
    OLD = "older than the newest keep_last"
    ABANDONED = "abandoned: the run went back before it and on"
    DAMAGED = "damaged, and older than everything kept"
    ASKED = "asked for"
    RESUMED = "its deletion had begun"


_KEEPING = {
    Reason.NEWEST, Reason.PROTECTED, Reason.KEEP_ALL, Reason.KEEP_LAST, Reason.KEEP_EVERY, Reason.BRANCH_YOUNG,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of one checkpoint."""

    id: CheckpointId
    reason: Reason

    @property
    def keep(self) -> bool:
        return self.reason in _KEEPING


def judge(
    committed: Iterable[CheckpointId],
    lineage: Lineage,
    *,
    keep_last: int | None,
    keep_every_steps: int | None = None,
    protected: Collection[CheckpointId] = (),
) -> list[Verdict]:
    """A verdict on each checkpoint, oldest first.

    Only checkpoints on the lineage count towards `keep_last` (None: keep everything). An abandoned one goes once
    `keep_last` later attempts' checkpoints of the lineage stand. The newest on the lineage (or, with none there, the
    newest of all) stays whatever the settings.
    """
    ordered = sorted(set(committed))
    on = [c for c in ordered if c in lineage]
    newest = max(on or ordered, default=None)
    last = set(on[-keep_last:] if keep_last else [])
    verdicts = []
    for checkpoint in ordered:
        if checkpoint == newest:
            reason = Reason.NEWEST
        elif checkpoint in protected:
            reason = Reason.PROTECTED
        elif keep_last is None:
            reason = Reason.KEEP_ALL
        elif checkpoint not in lineage:
            successors = sum(c.attempt > checkpoint.attempt for c in on)
            reason = Reason.ABANDONED if successors >= max(1, keep_last) else Reason.BRANCH_YOUNG
        elif checkpoint in last:
            reason = Reason.KEEP_LAST
        elif keep_every_steps and checkpoint.step % keep_every_steps == 0:
            reason = Reason.KEEP_EVERY
        else:
            reason = Reason.OLD
        verdicts.append(Verdict(checkpoint, reason))
    return verdicts


def select_deletions(
    committed: Sequence[CheckpointId],
    lineage: Lineage,
    keep_last: int | None,
    keep_every_steps: int | None = None,
    protected: Collection[CheckpointId] = (),
) -> list[CheckpointId]:
    """The checkpoints to delete, oldest first. See `judge`."""
    verdicts = judge(committed, lineage, keep_last=keep_last, keep_every_steps=keep_every_steps, protected=protected)
    return [v.id for v in verdicts if not v.keep]
