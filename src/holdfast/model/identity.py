"""Identity of checkpoints and images: run, attempt, step, rank.

Order is (attempt, step): after going back to step 50 and on to 70, the newest is 70 of the later attempt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class CheckpointId:
    """One checkpoint of a run; ordered by (attempt, step)."""

    attempt: int
    step: int

    def __str__(self) -> str:
        return f"step {self.step} (attempt {self.attempt})"


@dataclass(frozen=True, slots=True, order=True)
class ImageId:
    """One image of a checkpoint: image `image` of rank `rank`."""

    attempt: int
    step: int
    rank: int
    image: int = 0

    @property
    def checkpoint(self) -> CheckpointId:
        return CheckpointId(self.attempt, self.step)

    def __str__(self) -> str:
        return f"image {self.image} of rank {self.rank}, {self.checkpoint}"


@dataclass(frozen=True, slots=True)
class Attempt:
    """The claim of an attempt, as written once by its atomic create.

    `parent` is the checkpoint the attempt stands on (None: it started from nothing); `coordinator` tells another
    launch where to ask whether this one still lives.
    """

    run: str
    attempt: int
    parent: CheckpointId | None
    coordinator: str = ""


@dataclass(frozen=True, slots=True)
class Lineage:
    """Which checkpoints the highest attempt stands on: per attempt, the highest step that counts (None: all).

    Invariant: `limits` is keyed by attempt; attempts that are not in it are abandoned wholly.
    """

    limits: Mapping[int, int | None]

    def __contains__(self, checkpoint: CheckpointId) -> bool:
        if checkpoint.attempt not in self.limits:
            return False
        limit = self.limits[checkpoint.attempt]
        return limit is None or checkpoint.step <= limit


def lineage_of(attempts: Iterable[Attempt]) -> Lineage:
    """The lineage of the highest attempt, by following recorded parents.

    An attempt whose record is missing ends the walk; with no attempts at all the lineage is empty.
    """
    by_number = {a.attempt: a for a in attempts}
    limits: dict[int, int | None] = {}
    current = by_number.get(max(by_number, default=0))
    limit: int | None = None
    while current is not None and current.attempt not in limits:
        limits[current.attempt] = limit
        parent = current.parent
        if parent is None:
            break
        limit = parent.step
        nxt = by_number.get(parent.attempt)
        if nxt is None:
            limits[parent.attempt] = limit
        current = nxt
    return Lineage(limits)
