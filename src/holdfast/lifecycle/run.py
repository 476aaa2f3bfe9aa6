"""The run machine: receipts, coverage, commit, drops, retention, end. Events in, actions out.

One per run, at the coordinator; a new one learns everything again from the nodes (`Resend`) and the tiers
(`TierReceipt` of what was found, `CatalogRead`). images.py, presence.py, durability.py and ending.py hold its concerns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from holdfast.errors import NotDueError, SkippedError
from holdfast.lifecycle import actions, events
from holdfast.lifecycle.durability import Durability
from holdfast.lifecycle.ending import Ending
from holdfast.lifecycle.images import Images, superseded_error
from holdfast.lifecycle.ledger import Ledger, books_of
from holdfast.lifecycle.presence import Presence
from holdfast.lifecycle.progress import Progress, is_committing
from holdfast.lifecycle.steps import StepStatus, TierState, status_of
from holdfast.model.identity import CheckpointId, ImageId
from holdfast.model.place import TierRule


class RunMachine:
    """Invariants:

    - `Commit` is asked for only by the owner of the highest attempt, for a step of the lineage whose images all stand
      on that tier and were found to cover the step; images of two attempts never meet in one record;
    - what cannot become whole, or committed, is said to be so: every status settles;
    - per tier one deletion at a time; nothing a load or a commit uses is deleted;
    - state is bounded: see Ledger.
    Threads: none; one event at a time.
    """

    def __init__(self, rules: Sequence[TierRule], *, idle_s: float) -> None:
        self._ledger = Ledger(tuple(rules), books_of(rules, {}))
        self._p = Progress(self._ledger)
        self._presence = Presence(self._p)
        self._images = Images(self._p, self._presence)
        self._durability = Durability(self._p, self._images)
        self._ending = Ending(self._p, idle_s)
        self._on = self._handlers()

    def _handlers(self) -> dict[type[Any], Callable[[Any], None]]:
        images, presence = self._images, self._presence
        durability, ending = self._durability, self._ending
        return {
            events.TellsAnew: lambda e: presence.tells_anew(e.node),
            events.HasTold: lambda e: presence.has_told(e.node),
            events.ImageStaged: images.staged,
            events.MemoryReceipt: images.received,
            events.MemoryGone: lambda e: presence.memory_gone(e.node, e.image),
            events.ImageFailed: images.failed,
            events.WholeChecked: images.checked,
            events.RankAt: presence.rank_at,
            events.RankGaveUp: presence.rank_gave_up,
            events.RankGone: presence.rank_gone,
            events.NodeGone: lambda e: presence.node_gone(e.node),
            events.FlushBegun: durability.flush_begun,
            events.TierReceipt: durability.received,
            events.FlushFailed: durability.flush_failed,
            events.FlushSkipped: durability.flush_skipped,
            events.CommitDone: durability.commit_done,
            events.CommitFailed: durability.commit_failed,
            events.CatalogRead: durability.catalog_read,
            events.CatalogFailed: durability.catalog_failed,
            events.PruneAsked: durability.prune_asked,
            events.PruneDone: durability.prune_done,
            events.PruneFailed: durability.prune_failed,
            events.LoadBegun: lambda e: self._ledger.loads.update([e.checkpoint]),
            events.LoadEnded: durability.load_ended,
            events.AttemptOwned: self._attempt_owned,
            events.SupersededBy: self._superseded,
            events.Reconfigured: self._reconfigured,
            events.TrainersGone: lambda e: ending.trainers_gone(),
            events.TrainersBack: lambda e: ending.trainers_back(),
            events.CloseAsked: lambda e: ending.close(e.discard),
            events.TermSignal: lambda e: ending.term(e.grace_s),
            events.TimerFired: lambda e: ending.timer_fired(e.timer),
        }

    def handle(self, event: events.RunEvent) -> list[actions.RunAction]:
        """What is to be done now that this happened."""
        self._on[type(event)](event)
        self._ending.settle()
        self._ledger.trim()
        return self._p.take()

    # -- views --------------------------------------------------------------------------------------------------------
    def status(self, checkpoint: CheckpointId) -> StepStatus | None:
        """What became of a step; None when nothing is known of it (lost, never seen, or settled long ago)."""
        record = self._ledger.records.get(checkpoint)
        return status_of(record) if record is not None else None

    def steps(self) -> list[StepStatus]:
        """Every step remembered, oldest first."""
        return [status_of(self._ledger.records[c]) for c in sorted(self._ledger.records)]

    def is_whole(self, checkpoint: CheckpointId) -> bool:
        """Whether the step can be loaded from memory."""
        record = self._ledger.records.get(checkpoint)
        return record is not None and record.whole

    def newest_whole(self) -> CheckpointId | None:
        """The newest step of the lineage that is whole in memory."""
        record = self._ledger.newest_whole()
        return record.id if record is not None else None

    def committed(self, tier: str) -> frozenset[CheckpointId]:
        """What stands on a tier, as far as known, without what is being deleted."""
        return frozenset(self._ledger.books[tier].standing)

    def shared(self) -> frozenset[ImageId]:
        """Images that steps under way may name, whatever became of the step they were staged with."""
        return frozenset(self._ledger.sharing.images)

    def waiting_for(self) -> str:
        """What an end would wait for, in words; empty when nothing."""
        return self._ending.waiting_for()

    @property
    def told(self) -> bool:
        """Whether every node and tier has said what it has, so that a step not known here is nobody's."""
        return self._ledger.told

    def insecure(self) -> events.Error | None:
        """Why the newest whole step is not durable and nothing goes on about it; None when there is no such step."""
        return self._ending.insecure()

    # -- whose run it is ----------------------------------------------------------------------------------------------
    def _attempt_owned(self, event: events.AttemptOwned) -> None:
        """The run is ours: what was left behind is given up, what waited for the right to commit is committed."""
        ledger = self._ledger
        ledger.attempt, ledger.lineage = event.attempt, event.lineage
        ledger.at.clear()
        ledger.world_size = 0
        ledger.untold |= event.nodes
        for book in ledger.books.values():
            # What stands on the tiers since before is told next; until then nothing is dropped for want of an image.
            book.read = False
        self._p.to_nodes(events.LineageChanged(event.lineage))
        for checkpoint in sorted(c for c in ledger.records if ledger.abandoned(c)):
            record = ledger.records[checkpoint]
            if not record.lost:
                error = SkippedError(f"abandoned: attempt {event.attempt} went back before it", step=checkpoint.step)
                self._p.lose(record, error, TierState.SKIPPED)
        self._p.commit_all()
        self._p.delete_everywhere()

    def _superseded(self, event: events.SupersededBy) -> None:
        """The run is somebody else's: nothing more is committed or deleted."""
        ledger = self._ledger
        ledger.superseded_by = max(ledger.superseded_by, event.attempt)
        if ledger.owner:
            return
        error = superseded_error(ledger.superseded_by).to_dict()
        self._p.report(error)
        for record in ledger.records.values():
            for tier in record.open_tiers:
                if not is_committing(record, tier):
                    self._p.close_tier(record, tier, TierState.FAILED, error)

    def _reconfigured(self, event: events.Reconfigured) -> None:
        """A new launch brought other settings: what was under way to tiers that are gone is settled."""
        self._ending.idle_s = event.idle_s
        gone = self._ledger.reconfigure(event.rules)
        for record in self._ledger.records.values():
            for tier in [t for t in record.open_tiers if t in gone]:
                error = NotDueError("the tier is no longer configured there", tier=tier, step=record.id.step)
                self._p.close_tier(record, tier, TierState.DROPPED, error.to_dict())
