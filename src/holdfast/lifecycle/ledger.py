"""Everything the run machine knows, and the questions it asks of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

from holdfast.lifecycle.book import TierBook
from holdfast.lifecycle.sharing import Sharing
from holdfast.lifecycle.steps import StepRecord, TierState
from holdfast.model.identity import CheckpointId, ImageId, Lineage
from holdfast.model.place import TierRule

HISTORY_STEPS = 512
"""Steps whose status is remembered after everything about them is settled."""
_TRIM_AT_ONCE = 64


@dataclass(slots=True)
class Ledger:
    """Size: unsettled steps and steps in memory (bounded by slots), the newest settled ones, and each tier's book."""

    rules: tuple[TierRule, ...]
    books: dict[str, TierBook]
    records: dict[CheckpointId, StepRecord] = field(default_factory=dict)
    unsettled: set[CheckpointId] = field(default_factory=set)
    """Steps of which something is under way, and perhaps some that just settled."""
    attempt: int = 0
    lineage: Lineage | None = None
    superseded_by: int = 0
    at: dict[int, CheckpointId] = field(default_factory=dict)
    done: dict[int, CheckpointId] = field(default_factory=dict)
    """Per rank the newest step it gave up, or staged its first image of, which is the last it stages of a step."""
    world_size: int = 0
    """Ranks of the attempt that trains; 0 while nothing of theirs was heard of."""
    gone: set[int] = field(default_factory=set)
    """Ranks whose process is gone."""
    everyone_gone: bool = False
    _slow: int = 0
    """A rank that was found to be behind: looked at first, because there may be very many."""
    untold: set[str] = field(default_factory=set)
    """Nodes that have yet to say what they hold."""
    loads: Counter[CheckpointId] = field(default_factory=Counter)
    sharing: Sharing = field(default_factory=Sharing)
    leaving: dict[str, frozenset[CheckpointId]] = field(default_factory=dict)
    """What is still being deleted from tiers that are no longer configured."""

    @property
    def owner(self) -> bool:
        """Whether this run's agents may commit and prune."""
        return self.attempt > self.superseded_by

    @property
    def superseded(self) -> bool:
        return self.superseded_by > 0 and not self.owner

    def on_lineage(self, checkpoint: CheckpointId) -> bool:
        """Whether the step may be committed: of an attempt we know, and not left behind."""
        return self.lineage is not None and checkpoint in self.lineage

    def abandoned(self, checkpoint: CheckpointId) -> bool:
        """Whether the lineage left it behind. A later attempt than ours is only not announced to us yet."""
        return self.lineage is not None and checkpoint.attempt <= self.attempt and checkpoint not in self.lineage

    def stands(self, checkpoint: CheckpointId) -> bool:
        """Whether the step is committed on some tier."""
        return any(checkpoint in b.standing for b in self.books.values())

    def steps_of(self, image: ImageId) -> list[StepRecord]:
        """The steps an image belongs to: its own, or those that name it."""
        shared = self.sharing.images.get(image)
        steps = [image.checkpoint] if image.image == 0 else sorted(shared.steps) if shared is not None else []
        return [self.records[c] for c in steps if c in self.records]

    def newest_whole(self) -> StepRecord | None:
        whole = [r for r in self.records.values() if r.whole and not self.abandoned(r.id)]
        return max(whole, key=lambda r: r.id, default=None)

    def missing_rank(self, record: StepRecord, rank: int | None = None) -> int | None:
        """A rank that will never stage this step: past it without, or gone. None while all may come.

        `rank`: only this one is news.
        """
        if record.fully_announced or not self.told or self.loads[record.id]:
            return None  # nobody knows yet, or a load is bringing it in, image by image
        if self.everyone_gone or record.id.attempt < self.attempt:
            return next((r for r in range(record.world_size) if not record.staged_by(r)), None)
        news = sorted(self.gone | self.at.keys()) if rank is None else [rank]
        return next((r for r in news if self._is_past(record, r)), None)

    # -- who is done with a step --------------------------------------------------------------------------------------
    def hear_of(self, image: ImageId, world_size: int) -> None:
        """A rank staged an image, now or before anybody listened."""
        if image.attempt >= self.attempt:
            self.world_size = world_size
        if not image.image:
            self.finish(image.rank, image.checkpoint)

    def finish(self, rank: int, checkpoint: CheckpointId) -> None:
        """A rank will stage nothing more of a step."""
        self.done[rank] = max(checkpoint, self.done.get(rank, checkpoint))

    def is_awaited(self, checkpoint: CheckpointId) -> bool:
        """Whether some rank may still stage images of the step, whatever became of it: later steps may rely on them."""
        if self.everyone_gone or checkpoint.attempt < self.attempt:
            return False
        if any(checkpoint in b.committed for b in self.books.values()):
            return False
        behind = chain(range(self._slow, self.world_size), range(min(self._slow, self.world_size)))
        slow = next((r for r in behind if self._may_stage(r, checkpoint)), None)
        self._slow = self._slow if slow is None else slow
        return slow is not None or not self.world_size

    def _may_stage(self, rank: int, checkpoint: CheckpointId) -> bool:
        """Whether a rank may still bring images of a step."""
        done = rank in self.done and self.done[rank] >= checkpoint
        return not (done or rank in self.gone or (rank in self.at and self.at[rank] > checkpoint))

    @property
    def told(self) -> bool:
        """Whether nodes and tiers have said what they have; an image not heard of by then does not exist."""
        return not self.untold and all(b.read for b in self.books.values())

    def unreachable(self, record: StepRecord, tier: str, rank: int | None = None) -> ImageId | None:
        """An image (`rank`: of this one) that is not on the tier, and that nobody holds who could flush it."""
        if not self.told or record.tiers[tier].state is TierState.COMMITTING:
            return None
        known = sorted(record.known) if rank is None else record.of_rank(rank)
        images = record.tiers[tier].images
        lost = (i for i in known if i in record.known and i not in images and i not in record.held)
        return next((i for i in lost if self._has_spoken(record, i.rank)), None)

    def _has_spoken(self, record: StepRecord, rank: int) -> bool:
        """Whether the agent of the rank has told what it holds since this machine began."""
        return self.everyone_gone or record.id.attempt < self.attempt or rank in self.gone or rank in self.at

    def _is_past(self, record: StepRecord, rank: int) -> bool:
        if rank >= record.world_size or record.staged_by(rank):
            return False
        return rank in self.gone or (rank in self.at and self.at[rank] > record.id)

    def reconfigure(self, rules: tuple[TierRule, ...]) -> set[str]:
        """Take other rules; the tiers that are gone, or elsewhere now."""
        known, self.rules = self.books, rules
        self.books = books_of(rules, known)
        for name in self.books.keys() - known.keys():
            self.books[name].deleting = self.leaving.pop(name, frozenset())
        self.leaving |= {
            name: known[name].deleting for name in known.keys() - self.books.keys() if known[name].deleting
        }
        return {name for name, old in known.items() if self.books.get(name) is not old}

    def trim(self) -> None:
        """Forget the oldest settled steps beyond the history, many at once: it looks at every step."""
        surplus = len(self.records) - HISTORY_STEPS
        if surplus > _TRIM_AT_ONCE:
            old = [c for c in sorted(self.records) if self.records[c].over]
            for checkpoint in old[:surplus]:
                del self.records[checkpoint]


def books_of(rules: Sequence[TierRule], known: dict[str, TierBook]) -> dict[str, TierBook]:
    """A book for every tier but memory; a tier that stays where it was keeps its book."""
    books = {}
    for rule in rules:
        if not rule.is_memory:
            book = known.get(rule.name)
            if book is None or book.rule.url != rule.url:
                # One deletion at a time goes by the name: its answer cannot say which place it was about.
                book = TierBook(rule, deleting=book.deleting if book is not None else frozenset())
            book.rule = rule
            books[rule.name] = book
    return books
