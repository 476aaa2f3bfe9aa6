"""Retention: which committed checkpoints a tier keeps, and why. Pure: it knows no clock but that of the saves.

Age is counted along the checkpoints of the lineage, from each to the one after it: never less than nothing, never more
than half of `for_s` at once. A clock that jumps, or a job that stood still, can so never make everything old at once:
the newest two are always young.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from types import MappingProxyType

from holdfast.model.identity import CheckpointId, Lineage
from holdfast.model.notes import Notes
from holdfast.model.place import Keep

Noted = Mapping[CheckpointId, Notes]
_NOTHING: Noted = MappingProxyType({})


class Reason(Enum):
    """Why a checkpoint is kept or deleted, in words `prune` can print."""

    NEWEST = "the newest one is never deleted"
    PROTECTED = "protected"
    KEEP_ALL = "no limit is set"
    KEEP_LAST = "among the newest keep_last"
    KEEP_EVERY = "a multiple of keep_every_steps"
    KEEP_FOR = "younger than keep_for_s"
    KEEP_BEST = "among the best by best_metric"
    BRANCH_YOUNG = "abandoned, but what came after it is not enough yet"
    OLD = "nothing that is set keeps it"
    ABANDONED = "abandoned: the run went back before it and on"
    DAMAGED = "damaged, and older than everything kept"
    ASKED = "asked for"
    RESUMED = "its deletion had begun"


_KEEPING = {
    Reason.NEWEST, Reason.PROTECTED, Reason.KEEP_ALL, Reason.KEEP_LAST, Reason.KEEP_EVERY, Reason.KEEP_FOR,
    Reason.KEEP_BEST, Reason.BRANCH_YOUNG,
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
    keep: Keep,
    *,
    notes: Noted = _NOTHING,
    protected: Collection[CheckpointId] = (),
) -> list[Verdict]:
    """A verdict on each checkpoint, oldest first.

    Only checkpoints on the lineage count for any rule. An abandoned one goes once the later attempts' checkpoints of
    the lineage are `keep.last`, and have lasted `keep.for_s`. The newest on the lineage (or, with none there, the
    newest of all) stays whatever the settings.
    """
    ordered = sorted(set(committed))
    on = [c for c in ordered if c in lineage]
    newest = max(on or ordered, default=None)
    ruling = _Ruling(on, keep, notes)
    verdicts = []
    for checkpoint in ordered:
        if checkpoint == newest:
            reason = Reason.NEWEST
        elif checkpoint in protected:
            reason = Reason.PROTECTED
        elif not keep.limits:
            reason = Reason.KEEP_ALL
        else:
            reason = ruling.on_lineage(checkpoint) if checkpoint in lineage else ruling.abandoned(checkpoint)
        verdicts.append(Verdict(checkpoint, reason))
    return verdicts


class _Ruling:
    """What each rule keeps of the checkpoints on the lineage, oldest first."""

    def __init__(self, on: Sequence[CheckpointId], keep: Keep, notes: Noted) -> None:
        self._on, self._keep = on, keep
        self._last = set(on[-keep.last :] if keep.last else ())
        self._best = best(on, keep, notes)
        self._ages_s = ages(on, notes, longest_gap_s=keep.for_s / 2) if keep.for_s else {}

    def on_lineage(self, checkpoint: CheckpointId) -> Reason:
        every, for_s = self._keep.every_steps, self._keep.for_s
        if checkpoint in self._last:
            return Reason.KEEP_LAST
        if every and checkpoint.step % every == 0:
            return Reason.KEEP_EVERY
        if for_s and self._ages_s[checkpoint] < for_s:
            return Reason.KEEP_FOR
        return Reason.KEEP_BEST if checkpoint in self._best else Reason.OLD

    def abandoned(self, checkpoint: CheckpointId) -> Reason:
        after = [c for c in self._on if c.attempt > checkpoint.attempt]
        enough = len(after) >= max(1, self._keep.last or 0)
        if enough and self._keep.for_s:
            enough = self._ages_s[after[0]] >= self._keep.for_s
        return Reason.ABANDONED if enough else Reason.BRANCH_YOUNG


def best(on: Iterable[CheckpointId], keep: Keep, notes: Noted) -> set[CheckpointId]:
    """The best `keep.best` by `keep.metric`. What has no such metric, or none that is finite, is never among them; of
    equals the newer is better."""
    if not keep.best or keep.metric is None:
        return set()
    sign = 1.0 if keep.mode == "max" else -1.0
    told = ((c, notes[c].metric(keep.metric)) for c in on if c in notes)
    ranked = sorted((sign * value, c) for c, value in told if value is not None and math.isfinite(value))
    return {c for _, c in ranked[-keep.best :]}


def ages(on: Sequence[CheckpointId], notes: Noted, *, longest_gap_s: float) -> dict[CheckpointId, float]:
    """How much older than the newest each is, in seconds as counted here; `on` is oldest first.

    What does not say when it was saved counts as saved together with the next newer.
    """
    age_s, found = 0.0, dict.fromkeys(on[-1:], 0.0)
    for newer, older in pairwise(reversed(on)):
        if newer in notes and older in notes:
            gap_s = notes[newer].saved_at_s - notes[older].saved_at_s
            age_s += min(max(gap_s, 0.0), longest_gap_s)
        found[older] = age_s
    return found


def select_deletions(
    committed: Iterable[CheckpointId],
    lineage: Lineage,
    keep: Keep,
    *,
    notes: Noted = _NOTHING,
    protected: Collection[CheckpointId] = (),
) -> list[CheckpointId]:
    """The checkpoints to delete, oldest first. See `judge`."""
    return [v.id for v in judge(committed, lineage, keep, notes=notes, protected=protected) if not v.keep]
