"""What the run machine knows of a step: who announced what, what receipts say, what became of it on each tier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from holdfast.lifecycle.actions import KnownImage
from holdfast.lifecycle.events import Error
from holdfast.model.identity import CheckpointId, ImageId


class Check(Enum):
    """Of the coverage of a step by its images."""

    MISSING = "missing"
    """Not all images are known yet."""
    RUNNING = "running"
    PASSED = "passed"


class TierState(Enum):
    """Of a step on a tier where it is, or became, due."""

    WAITING = "waiting"
    FLUSHING = "flushing"
    COMMITTING = "committing"
    COMMITTED = "committed"
    SKIPPED = "skipped"
    FAILED = "failed"
    DROPPED = "dropped"


OPEN = (TierState.WAITING, TierState.FLUSHING, TierState.COMMITTING)


@dataclass(slots=True)
class TierProgress:
    """A step on its way to a tier."""

    state: TierState = TierState.WAITING
    images: set[ImageId] = field(default_factory=set)
    error: Error | None = None
    commit_begun: bool = False
    """Once a commit was tried its manifest may stand, whatever the answer: its images are never swept."""


@dataclass(slots=True)
class StepRecord:
    """A step of the run. Invariant: every image named here is of this very checkpoint, or older and relied on."""

    id: CheckpointId
    world_size: int = 0
    announced: dict[int, dict[int, ImageId]] = field(default_factory=dict)
    """Per rank the images it staged, by number."""
    image_counts: dict[int, int] = field(default_factory=dict)
    _ranks_done: int = 0
    _expected: int = 0
    """Images of the ranks that said how many they stage. Counted, because a step has up to 100,000 of them."""
    shared: set[ImageId] = field(default_factory=set)
    """Images that other steps may name too: all but each rank's first."""
    known: dict[ImageId, KnownImage] = field(default_factory=dict)
    held: dict[ImageId, set[str]] = field(default_factory=dict)
    """Per image the nodes that have it in a slot, verified or not yet."""
    memory: dict[ImageId, set[str]] = field(default_factory=dict)
    """Per image the nodes whose memory holds it verified."""
    tiers: dict[str, TierProgress] = field(default_factory=dict)
    check: Check = Check.MISSING
    lost: str = ""
    """Why memory cannot make it whole: "failed", "dropped" (also pruned, abandoned), or "gone" (committed, and not all
    of it in memory any more); empty while it may."""
    error: Error | None = None
    was_whole: bool = False
    told_whole: bool = False
    """The nodes believe that it is whole."""
    due: frozenset[str] = frozenset()
    """Where any rank staged it for."""
    due_to_all: frozenset[str] | None = None
    """Where every rank that staged it did so for; None: nobody has."""
    timed: frozenset[str] = frozenset()
    """Where it is due by time alone."""
    in_doubt: bool = False
    """A node that had images of it says anew what it holds."""
    size_bytes: int = 0

    @property
    def only_timed(self) -> bool:
        """Nothing but time made it due: nobody misses it, as a later step takes its place."""
        return bool(self.due) and self.due <= self.timed

    def note_due(self, due: frozenset[str], timed: frozenset[str]) -> set[str]:
        """A rank staged it for these tiers; the timed ones that not every rank was told of in time."""
        self.due |= due
        self.timed |= timed
        self.due_to_all = due if self.due_to_all is None else self.due_to_all & due
        return set(self.timed - self.due_to_all)

    def announce(self, image: ImageId, image_count: int) -> None:
        """Note that a rank staged an image."""
        had = self.staged_by(image.rank)
        self._expected += image_count - self.image_counts.get(image.rank, 0)
        self.image_counts[image.rank] = image_count
        self.announced.setdefault(image.rank, {})[image.image] = image
        self._ranks_done += self.staged_by(image.rank) - had

    def let_go(self, image: ImageId, node: str) -> None:
        """Note that a node has the image no more. One that nobody holds or described counts as never staged."""
        for places in (self.held, self.memory):
            nodes = places.get(image, set())
            nodes.discard(node)
            if not nodes:
                places.pop(image, None)
        if image not in self.held and image not in self.known and image.rank in self.announced:
            had = self.staged_by(image.rank)
            self.announced[image.rank].pop(image.image, None)
            self._ranks_done -= had

    def of_rank(self, rank: int) -> list[ImageId]:
        """The images a rank announced."""
        return [image for _, image in sorted(self.announced.get(rank, {}).items())]

    def staged_by(self, rank: int) -> bool:
        """Whether the rank staged all of its images."""
        return len(self.announced.get(rank, ())) == self.image_counts.get(rank, -1)

    @property
    def fully_announced(self) -> bool:
        return 0 < self.world_size == self._ranks_done

    def holds_all(self, images: Mapping[ImageId, object] | set[ImageId]) -> bool:
        """Whether these are all images of the step."""
        return self.fully_announced and len(images) == self._expected

    @property
    def whole(self) -> bool:
        """All images verified in memory and known to cover the step."""
        return self.check is Check.PASSED and not self.lost and self.holds_all(self.memory)

    @property
    def forming(self) -> bool:
        """It may still become whole: nothing is lost, and the check has not passed."""
        return not self.lost and self.check is not Check.PASSED

    @property
    def open_tiers(self) -> list[str]:
        return sorted(t for t, p in self.tiers.items() if p.state in OPEN)

    @property
    def settled(self) -> bool:
        return not self.forming and not self.open_tiers

    @property
    def over(self) -> bool:
        """Nothing is under way, and no memory holds an image of it. What it shares may stay for others."""
        return self.settled and not (self.held.keys() - self.shared)

    def slim(self) -> None:
        """Let go of headers that nothing can need."""
        if self.over:
            self.known.clear()


@dataclass(frozen=True, slots=True)
class TierStatus:
    """A step on a tier, for its handle: waiting, flushing, committed, skipped, failed or dropped."""

    state: str
    error: Error | None = None


@dataclass(frozen=True, slots=True)
class StepStatus:
    """What became of a step, for its handle.

    `memory` is staged, whole, gone (it was whole, or is committed, and its memory was freed), failed or dropped.
    Tiers that are not in `tiers` are not due.
    """

    checkpoint: CheckpointId
    memory: str
    tiers: Mapping[str, TierStatus]
    error: Error | None
    size_bytes: int

    @property
    def settled(self) -> bool:
        """Nothing is under way any more."""
        return self.memory != "staged" and not any(t.state in ("waiting", "flushing") for t in self.tiers.values())


_NO_FAILURE = {"skipped", "superseded", "not-due"}
"""Kinds of errors that are no failure of a save: given up for a newer step, the run is another's, no tier."""
_PRUNED = ("dropped", "not-found")
"""A step that was deleted on purpose. `failed` with the same kind is a tier that lost its directory."""


def outcomes_of(status: StepStatus) -> dict[str, Error | None]:
    """What came of a save in memory and on each tier where it was due: None where it is, or was, well.

    It says nothing of where it is still under way, was given up for a newer step, or pruned.
    """
    found: dict[str, Error | None] = {}
    places = [("memory", status.memory, status.error), *((n, t.state, t.error) for n, t in status.tiers.items())]
    for place, state, error in places:
        if state in ("whole", "gone", "committed"):
            found[place] = None
        elif state in ("failed", "dropped") and error is not None and _is_failure(state, error):
            found[place] = error
    return found


def _is_failure(state: str, error: Error) -> bool:
    kind = error.get("kind")
    return kind not in _NO_FAILURE and (state, kind) != _PRUNED


_SHOWN = {TierState.COMMITTING: "flushing"}


def status_of(record: StepRecord) -> StepStatus:
    """The status of a step as its handle shows it."""
    tiers = {t: TierStatus(_SHOWN.get(p.state, p.state.value), p.error) for t, p in sorted(record.tiers.items())}
    return StepStatus(record.id, _memory_word(record), tiers, record.error, record.size_bytes)


def _memory_word(record: StepRecord) -> str:
    if record.lost:
        return "gone" if record.was_whole else record.lost
    if record.check is not Check.PASSED:
        return "staged"
    return "whole" if record.whole else "gone"
