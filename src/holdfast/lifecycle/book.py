"""What stands on one tier and what is to go from it. One deletion at a time; none of what a load or a commit uses."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from holdfast.lifecycle.actions import Prune, Sweep
from holdfast.model.identity import CheckpointId, ImageId
from holdfast.model.notes import Notes
from holdfast.model.place import TierRule

_REMEMBERED = 512


@dataclass(slots=True)
class TierBook:
    """Invariants: at most one `Prune` or `Sweep` is under way; a checkpoint once pruned does not come back.

    Size: what stands on the tier (the newest 512 where nothing is ever pruned), and what is being deleted.
    """

    rule: TierRule
    read: bool = False
    """Listed, or found not to be listable, since the attempt was claimed."""
    listed: bool = False
    """Listed at least once."""
    committed: set[CheckpointId] = field(default_factory=set)
    notes: dict[CheckpointId, Notes] = field(default_factory=dict)
    """What committed ones say of themselves."""
    doomed: set[CheckpointId] = field(default_factory=set)
    """To be pruned, or begun to be."""
    remains: set[CheckpointId] = field(default_factory=set)
    """Images stand there that no manifest will name."""
    deleting: frozenset[CheckpointId] = frozenset()
    awaited: bool = False
    """Some of what is to go has to wait until every rank is past it."""
    refused: set[CheckpointId] = field(default_factory=set)
    """Of the doomed those that had to stay for now, and that somebody was told of."""
    resting: set[CheckpointId] = field(default_factory=set)
    """Of the refused those that are not tried again before the next commit there, or listing."""
    _pruned: deque[CheckpointId] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))

    def take_listing(
        self,
        committed: Iterable[CheckpointId],
        tombstoned: Collection[CheckpointId],
        notes: Mapping[CheckpointId, Notes],
    ) -> None:
        """Take note of a listing; it may be older than what was pruned or committed since."""
        self.read = self.listed = True
        self.resting.clear()
        gone = set(self._pruned)
        self.doomed |= set(tombstoned) - gone
        for checkpoint in sorted(set(committed) - gone):
            self.add(checkpoint, notes.get(checkpoint))

    def add(self, checkpoint: CheckpointId, notes: Notes | None = None) -> None:
        """The checkpoint is committed."""
        self.resting.clear()
        self.committed.add(checkpoint)
        self.remains.discard(checkpoint)
        if notes is not None:
            self.notes[checkpoint] = notes
        if not self.rule.keep.limits and len(self.committed) > _REMEMBERED:
            oldest = min(self.committed)
            self.committed.discard(oldest)
            self.notes.pop(oldest, None)

    @property
    def standing(self) -> set[CheckpointId]:
        """Committed and there to stay, for all that is known."""
        return self.committed - self.doomed - self.deleting

    def next_deletion(
        self, in_use: Collection[CheckpointId], spare: frozenset[ImageId] = frozenset()
    ) -> Prune | Sweep | None:
        """What to delete now, if anything; the answer is `deleted` or `not_deleted`."""
        if self.deleting:
            return None
        doomed, remains = self.doomed - self.resting - set(in_use), self.remains - set(in_use) - self.committed
        self.deleting = frozenset(doomed or remains)
        if not self.deleting:
            return None
        return (Prune if doomed else Sweep)(self.rule.name, self.deleting, spare)

    def deleted(self, checkpoints: Collection[CheckpointId]) -> None:
        """A deletion is done."""
        gone = set(checkpoints)
        self._pruned.extend(sorted(gone & self.doomed))
        self.committed -= gone
        for checkpoint in gone:
            self.notes.pop(checkpoint, None)
        self.doomed -= gone
        self.remains -= gone
        self.refused -= gone
        self.resting -= gone
        self.deleting = frozenset()

    def refuse(self, checkpoints: Collection[CheckpointId]) -> set[CheckpointId]:
        """These doomed ones have to stay for now; those that this is news of."""
        stay = self.doomed & set(checkpoints)
        news = stay - self.refused
        self.refused |= stay
        self.resting |= stay
        return news

    def not_deleted(self) -> None:
        """A deletion failed. A prune stays wanted; images without manifest wait for the sweep of the next start."""
        self.remains -= self.deleting
        self.deleting = frozenset()

    def forgotten(self, checkpoint: CheckpointId) -> bool:
        """Whether the step was pruned here, or is about to be."""
        return checkpoint in self.doomed or checkpoint in self._pruned

    def going(self, checkpoint: CheckpointId) -> bool:
        """Whether images of this step are being deleted, or will be."""
        return checkpoint in self.deleting or checkpoint in self.doomed or checkpoint in self.remains
