"""The run machine's part about tiers: receipts, commits, skips, failures, retention, deletion."""

from __future__ import annotations

from collections import Counter

from holdfast.errors import SkippedError, SupersededError
from holdfast.lifecycle import actions, events
from holdfast.lifecycle.images import Images
from holdfast.lifecycle.progress import Progress, is_committing, pruned_error
from holdfast.lifecycle.steps import OPEN, StepRecord, TierState
from holdfast.model.identity import CheckpointId
from holdfast.policy.retention import select_deletions


class Durability:
    """Invariants: a step is closed on a tier at most once per opening; retention follows a commit, never precedes it.

    Threads: none.
    """

    def __init__(self, progress: Progress, images: Images) -> None:
        self._p = progress
        self._images = images
        self._ledger = progress.ledger

    # -- flushes ------------------------------------------------------------------------------------------------------
    def flush_begun(self, event: events.FlushBegun) -> None:
        """A node began to flush its part of a step."""
        record = self._ledger.records.get(event.checkpoint)
        progress = record.tiers.get(event.tier) if record is not None else None
        if record is not None and progress is not None and progress.state is TierState.WAITING:
            progress.state = TierState.FLUSHING
            self._p.changed(record)

    def received(self, event: events.TierReceipt) -> None:
        """An image stands on a tier."""
        if event.record is not None and event.header is not None:
            self._images.found(event.tier, actions.KnownImage(event.record, event.header))
        if event.image.image and event.image in self._ledger.sharing.images:
            self._ledger.sharing.images[event.image].tiers.add(event.tier)
        for record in self._ledger.steps_of(event.image):
            self._stands(record, event)

    def _stands(self, record: StepRecord, event: events.TierReceipt) -> None:
        """A step has an image on a tier."""
        progress = record.tiers.get(event.tier)
        if progress is None or progress.state is TierState.COMMITTED:
            return
        progress.images.add(event.image)
        if progress.state not in OPEN:
            self._p.sweep_remains(record, event.tier)
        self._p.advance(record)
        self._p.changed(record)

    def flush_failed(self, event: events.FlushFailed) -> None:
        """A node could not flush an image: the step will not be committed there, other tiers go on."""
        self._p.report(event.error)
        self._p.close_open(event.image.checkpoint, event.tier, TierState.FAILED, event.error)

    def flush_skipped(self, event: events.FlushSkipped) -> None:
        """A lagging tier gave the step up for a newer one."""
        error = SkippedError(
            "the tier was lagging and skipped this step for a newer one",
            hint="save less often there, or use a faster tier",
            tier=event.tier,
            step=event.checkpoint.step,
        )
        self._p.close_open(event.checkpoint, event.tier, TierState.SKIPPED, error.to_dict())

    # -- commits ------------------------------------------------------------------------------------------------------
    def commit_done(self, event: events.CommitDone) -> None:
        """The step's manifest stands: what the tier need not keep any longer may go."""
        book = self._ledger.books.get(event.tier)
        record = self._ledger.records.get(event.checkpoint)
        if book is None or record is None or not is_committing(record, event.tier):
            # The tier went, or is elsewhere now: what stands where it was is none of its business.
            return
        book.add(event.checkpoint, event.notes)
        self._p.mark_committed(record, event.tier)
        self._retain(event.tier)
        self._p.delete(event.tier)

    def commit_failed(self, event: events.CommitFailed) -> None:
        """The commit failed for good; the manifest may stand all the same, so nothing is swept."""
        self._p.report(event.error)
        record = self._ledger.records.get(event.checkpoint)
        if record is not None and record.shared:
            # Perhaps it is what it shares that is not there as it should be: for later steps it is flushed anew.
            self._p.to_nodes(events.CopiesInDoubt(event.tier, event.checkpoint))
        if record is not None and is_committing(record, event.tier):
            self._p.close_tier(record, event.tier, TierState.FAILED, event.error)
        self._p.delete(event.tier)

    def _retain(self, tier: str) -> None:
        ledger, book = self._ledger, self._ledger.books[tier]
        if ledger.owner and ledger.lineage is not None:
            rule, standing = book.rule, sorted(book.standing)
            in_use = set(ledger.loads)
            gone = select_deletions(standing, ledger.lineage, rule.keep, notes=book.notes, protected=in_use)
            book.doomed |= set(gone)

    # -- listings -----------------------------------------------------------------------------------------------------
    def catalog_read(self, event: events.CatalogRead) -> None:
        """A tier was listed."""
        book = self._ledger.books.get(event.tier)
        if book is None:
            return
        book.take_listing(event.committed, event.tombstoned, event.notes)
        for checkpoint in sorted(self._ledger.records):
            self._compare(checkpoint, event.tier)
        self._p.drop_incomplete()
        self._p.forget_idle()
        self._p.delete(event.tier)

    def _compare(self, checkpoint: CheckpointId, tier: str) -> None:
        """Set what is known of a step on the tier right by the listing."""
        record, book = self._ledger.records[checkpoint], self._ledger.books[tier]
        if is_committing(record, tier):
            return
        if checkpoint in book.standing:
            if tier not in record.tiers or record.tiers[tier].state is not TierState.COMMITTED:
                self._p.mark_committed(record, tier)
        elif checkpoint in book.doomed:
            self._p.close_open(checkpoint, tier, TierState.DROPPED, pruned_error(checkpoint, tier))
        elif record.held and tier in record.tiers and record.tiers[tier].state is TierState.COMMITTED:
            # The page of a slot said so; it does not hear of prunes.
            self._p.mark_pruned(record, tier)

    def catalog_failed(self, event: events.CatalogFailed) -> None:
        """A tier could not be listed: go on with what is known."""
        self._p.report(event.error)
        if event.tier in self._ledger.books:
            self._ledger.books[event.tier].read = True
            self._p.drop_incomplete()
            self._p.forget_idle()

    # -- deletions ----------------------------------------------------------------------------------------------------
    def prune_asked(self, event: events.PruneAsked) -> None:
        """A person wants checkpoints gone: at once for everyone, on the tiers as soon as may be."""
        if not self._ledger.owner:
            self._p.report(SupersededError("only the owner of the highest attempt prunes").to_dict())
            return
        for checkpoint in sorted(event.checkpoints):
            record = self._ledger.records.get(checkpoint)
            for name, book in self._ledger.books.items():
                book.doomed.add(checkpoint)
                if record is not None:
                    self._p.close_open(checkpoint, name, TierState.DROPPED, pruned_error(checkpoint, name))
            if record is not None and not record.lost:
                self._p.lose(record, pruned_error(checkpoint, None))
        self._p.delete_everywhere()

    def prune_done(self, event: events.PruneDone) -> None:
        """A deletion is done."""
        book = self._ledger.books.get(event.tier)
        if book is None:
            self._ledger.leaving.pop(event.tier, None)
            return
        pruned = book.doomed & event.checkpoints
        book.deleted(event.checkpoints)
        for checkpoint in sorted(book.refuse(event.refused)):
            self._p.report(event.refused[checkpoint])
        for checkpoint in sorted(pruned & self._ledger.records.keys()):
            record = self._ledger.records[checkpoint]
            if event.tier in record.tiers:
                self._p.mark_pruned(record, event.tier)
        self._p.delete(event.tier)

    def prune_failed(self, event: events.PruneFailed) -> None:
        """A deletion failed; tried again with the next one that comes up."""
        self._p.report(event.error)
        self._ledger.leaving.pop(event.tier, None)
        if event.tier in self._ledger.books:
            self._ledger.books[event.tier].not_deleted()

    def load_ended(self, event: events.LoadEnded) -> None:
        """A checkpoint is no longer read; what was to be deleted meanwhile goes now."""
        self._ledger.loads -= Counter([event.checkpoint])
        self._p.drop_incomplete()
        self._p.delete_everywhere()
