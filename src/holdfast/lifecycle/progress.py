"""What moves a step of the run forward, and what ends it: check, commit, drop, close, delete.

The parts of the run machine (images.py, presence.py, durability.py, ending.py) decide by event; what they want done
meets here.
"""

from __future__ import annotations

from collections.abc import Iterable

from holdfast.errors import HoldfastError, NotFoundError, SkippedError, StepDroppedError, StepLostError
from holdfast.lifecycle import actions, events
from holdfast.lifecycle.ledger import Ledger
from holdfast.lifecycle.steps import OPEN, Check, StepRecord, TierProgress, TierState
from holdfast.model.identity import CheckpointId, ImageId


class Progress:
    """Invariants: see RunMachine, of which this is a part. Threads: none."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._out: list[actions.RunAction] = []

    def take(self) -> list[actions.RunAction]:
        """What is to be done, once."""
        out, self._out = self._out, []
        return out

    # -- saying -------------------------------------------------------------------------------------------------------
    def do(self, action: actions.RunAction) -> None:
        """Want this done, after what was wanted before."""
        self._out.append(action)

    def to_nodes(self, event: events.FromRun, node: str | None = None) -> None:
        """Tell one node, or all."""
        self.do(actions.ToNodes(event, node))

    def report(self, error: events.Error) -> None:
        """Say that something went wrong behind the training loop."""
        self.do(actions.Report(error))

    def changed(self, record: StepRecord) -> None:
        """The status of the step may have changed."""
        record.slim()
        if record.over and record.shared:
            self.forget_shared(self.ledger.sharing.unlink(record))
        self.do(actions.Notify(record.id))

    def delete_everywhere(self) -> None:
        """`delete` on every tier."""
        for tier in self.ledger.books:
            self.delete(tier)

    def forget_shared(self, images: Iterable[ImageId]) -> None:
        """What steps shared and none needs any more: where no manifest names it, it goes.

        Not before nodes and tiers have told what they have: something there may name it (`forget_idle` comes then).
        """
        for image in images if self.ledger.told else ():
            for tier in sorted(self.ledger.sharing.images.pop(image).tiers & self.ledger.books.keys()):
                book = self.ledger.books[tier]
                if book.listed and not self._may_stand(image.checkpoint, tier):
                    book.remains.add(image.checkpoint)
                    self.delete(tier)

    def forget_idle(self) -> None:
        """`forget_shared` whatever has become idle."""
        self.forget_shared(self.ledger.sharing.idle(list(self.ledger.sharing.images)))

    def _may_stand(self, checkpoint: CheckpointId, tier: str) -> bool:
        """Whether the step is committed on the tier, or was tried to be: its images are none of a sweep's business."""
        record = self.ledger.records.get(checkpoint)
        tried = record is not None and tier in record.tiers and record.tiers[tier].commit_begun
        return tried or checkpoint in self.ledger.books[tier].committed

    def record(self, checkpoint: CheckpointId) -> StepRecord:
        """The record of a step, made when the step is first heard of."""
        record = self.ledger.records.get(checkpoint)
        if record is None:
            record = self.ledger.records[checkpoint] = StepRecord(checkpoint)
            self.ledger.unsettled.add(checkpoint)
        return record

    # -- forward ------------------------------------------------------------------------------------------------------
    def advance(self, record: StepRecord) -> None:
        """Check what became complete; make known what became whole; commit what stands complete on a tier."""
        if record.lost:
            return
        if record.check is Check.MISSING and record.holds_all(record.known):
            record.check = Check.RUNNING
            record.size_bytes = sum(i.record.size_bytes for i in record.known.values())
            self.do(actions.CheckWhole(record.id, _sorted_images(record)))
        if record.check is not Check.PASSED:
            return
        if record.whole and not record.told_whole:
            record.was_whole = record.told_whole = True
            self.to_nodes(events.BecameWhole(record.id))
        for name in record.open_tiers:
            self._commit_if_complete(record, name)

    def _commit_if_complete(self, record: StepRecord, tier: str) -> None:
        progress = record.tiers[tier]
        if progress.state is TierState.COMMITTING or not record.holds_all(progress.images):
            return
        if self.ledger.owner and self.ledger.on_lineage(record.id):
            progress.state, progress.commit_begun = TierState.COMMITTING, True
            self.ledger.books[tier].remains.discard(record.id)
            self.do(actions.Commit(tier, record.id, _sorted_images(record)))

    def commit_all(self) -> None:
        """Commit what waited for the right to."""
        for checkpoint in sorted(self.ledger.records):
            self.advance(self.ledger.records[checkpoint])

    def mark_committed(self, record: StepRecord, tier: str) -> None:
        """The step's manifest stands on the tier."""
        record.tiers[tier] = TierProgress(TierState.COMMITTED, commit_begun=True)
        self.ledger.sharing.stand(record, tier)
        self.to_nodes(events.Committed(tier, record.id))
        self.changed(record)

    def mark_pruned(self, record: StepRecord, tier: str) -> None:
        """The step stands on the tier no more; nodes must not take it for durable there."""
        record.tiers[tier] = TierProgress(TierState.DROPPED, error=pruned_error(record.id, tier))
        self.to_nodes(events.CancelFlush(tier, record.id))
        self.changed(record)

    # -- ended --------------------------------------------------------------------------------------------------------
    def drop_incomplete(self, rank: int | None = None) -> None:
        """Settle the steps for which some rank (`rank`: only that one is news) will never bring its part."""
        for checkpoint in sorted(self.ledger.unsettled):
            record = self.ledger.records.get(checkpoint)
            if record is None or record.settled:
                self.ledger.unsettled.discard(checkpoint)
            else:
                self.drop_if_missing(record, rank)

    def drop_if_missing(self, record: StepRecord, rank: int | None = None) -> None:
        """Drop the step if some rank will never stage its part; close it on tiers that can never get an image of it."""
        missing = self.ledger.missing_rank(record, rank) if record.forming else None
        if missing is not None and self.ledger.stands(record.id):
            self._leave_to_tiers(record, missing)
        elif missing is not None and record.only_timed:
            why = f"rank {missing} read too late that this step is due by time; a later one takes its place"
            self.lose(record, SkippedError(why, step=record.id.step), TierState.SKIPPED)
        elif missing is not None:
            self.drop(record, f"rank {missing} has no image of it")
        for tier in record.open_tiers:
            image = self.ledger.unreachable(record, tier, rank)
            if image is not None:
                self._fail_for_want(record, tier, str(image))

    def _leave_to_tiers(self, record: StepRecord, missing: int) -> None:
        """A committed step of which memory has only a part: it stands where it stands, and comes to no other tier."""
        record.lost = "gone"
        for tier in record.open_tiers:
            self._fail_for_want(record, tier, f"the image of rank {missing}")
        self.to_nodes(events.Release(record.id))
        self.changed(record)

    def _fail_for_want(self, record: StepRecord, tier: str, image: str) -> None:
        """A tier can never get this image."""
        error = StepLostError(f"the memory of {image} was freed before", tier=tier, step=record.id.step)
        self.close_tier(record, tier, TierState.FAILED, error.to_dict())

    def drop(self, record: StepRecord, why: str) -> None:
        """The step can never be whole: give it up on all ranks."""
        error = StepDroppedError(
            f"dropped on all ranks: {why}",
            hint="a tier may be too slow for its every_steps: save less often there, or raise HOLDFAST_SLOT_WAIT_S",
            step=record.id.step,
        )
        self.report(error.to_dict())
        self.lose(record, error)

    def lose(
        self, record: StepRecord, error: HoldfastError | events.Error, state: TierState = TierState.DROPPED
    ) -> None:
        """The step does not count any more: settle it everywhere (`state` on its open tiers), free its slots."""
        said = error.to_dict() if isinstance(error, HoldfastError) else error
        record.lost = "failed" if state is TierState.FAILED else "dropped"
        record.error = record.error or said
        for name in record.open_tiers:
            if record.tiers[name].state is not TierState.COMMITTING:
                self.close_tier(record, name, state, said)
        self.to_nodes(events.Forget(record.id, str(said["message"])))
        self.changed(record)

    def close_open(self, checkpoint: CheckpointId, tier: str, state: TierState, error: events.Error) -> None:
        """Like `close_tier`, if the step is known and still under way there.

        Not while it is committed: its images all stand there then, whatever a node that looked later was about to do.
        """
        record = self.ledger.records.get(checkpoint)
        if record is not None and tier in record.open_tiers and not is_committing(record, tier):
            self.close_tier(record, tier, state, error)

    def close_tier(self, record: StepRecord, tier: str, state: TierState, error: events.Error) -> None:
        """The step will not be committed there: no node goes on with it, what stands there already is swept."""
        progress = record.tiers[tier]
        progress.state, progress.error = state, error
        self.to_nodes(events.CancelFlush(tier, record.id))
        self.sweep_remains(record, tier)
        self.changed(record)

    # -- deleted ------------------------------------------------------------------------------------------------------
    def sweep_remains(self, record: StepRecord, tier: str) -> None:
        """Have images removed that no manifest can name."""
        progress, book = record.tiers[tier], self.ledger.books.get(tier)
        if progress.images - record.shared and not progress.commit_begun and book is not None:
            progress.images.clear()
            book.remains.add(record.id)
        self.delete(tier)

    def delete_passed(self) -> None:
        """`delete` where it had to wait for ranks: one of them may have gone on."""
        for tier, book in self.ledger.books.items():
            if book.awaited:
                self.delete(tier)

    def delete(self, tier: str) -> None:
        """Go on deleting on this tier, if there is anything to delete and it is ours to do.

        Not before every node has told what it holds: steps there may name what was staged with one that is to go. Nor
        while a rank may still bring images of it, or a flush: a deletion would take what comes there while it runs.
        """
        ledger, book = self.ledger, self.ledger.books.get(tier)
        if book is None or book.deleting or not ledger.owner or ledger.untold or not (book.doomed or book.remains):
            return
        in_use = {r.id for r in ledger.records.values() if tier in r.tiers and r.tiers[tier].state in OPEN}
        in_use |= ledger.loads.keys()
        awaited = {c for c in (book.doomed | book.remains) - in_use if ledger.is_awaited(c)}
        book.awaited = bool(awaited)
        wanted = book.next_deletion(in_use | awaited, frozenset(ledger.sharing.images))
        if wanted is not None:
            self.do(wanted)


def is_committing(record: StepRecord, tier: str) -> bool:
    """Whether a commit of the step is under way on the tier."""
    return tier in record.tiers and record.tiers[tier].state is TierState.COMMITTING


def _sorted_images(record: StepRecord) -> tuple[actions.KnownImage, ...]:
    return tuple(record.known[i] for i in sorted(record.known))


def pruned_error(checkpoint: CheckpointId, tier: str | None) -> events.Error:
    """What becomes of a step, or of its place on a tier, that was deleted on purpose."""
    return NotFoundError("pruned", tier=tier, step=checkpoint.step).to_dict()
