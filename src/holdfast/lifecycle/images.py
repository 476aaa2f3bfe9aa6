"""The run machine's part about images and ranks: who staged what, what is whole, what never will be."""

from __future__ import annotations

from collections.abc import Iterable

from holdfast.errors import CorruptError, SkippedError, StepLostError, SupersededError
from holdfast.lifecycle import actions, events
from holdfast.lifecycle.progress import Progress
from holdfast.lifecycle.steps import OPEN, Check, StepRecord, TierProgress, TierState
from holdfast.model.identity import CheckpointId, ImageId


class Images:
    """Invariant: a step becomes whole only when every image any rank announced is verified and the check passed.

    Threads: none.
    """

    def __init__(self, progress: Progress) -> None:
        self._p = progress
        self._ledger = progress.ledger

    # -- announced ----------------------------------------------------------------------------------------------------
    def staged(self, event: events.ImageStaged) -> None:
        """A rank staged an image."""
        record = self._admit(event.image.checkpoint)
        self._ledger.gone.discard(event.image.rank)
        if not record.lost and self._fits(record, event.world_size):
            record.announce(event.image, event.image_count)
        record.held.setdefault(event.image, set()).add(event.node)
        self._was_committed(record, event.committed)
        self.make_due(record, event.due)
        self._remind(record, event.node)
        self._p.drop_if_missing(record)
        self._p.changed(record)

    def _admit(self, checkpoint: CheckpointId) -> StepRecord:
        """The record of a step somebody speaks of; lost from the start when it was left behind."""
        record = self._p.record(checkpoint)
        if record.lost == "gone":
            # Fetched again.
            record.lost = ""
            self._ledger.unsettled.add(checkpoint)
        if not record.lost and self._ledger.abandoned(checkpoint):
            self._p.lose(record, SkippedError("abandoned: its attempt is over", step=checkpoint.step))
        return record

    def _fits(self, record: StepRecord, world_size: int) -> bool:
        if record.world_size not in (0, world_size):
            said = f"images of {record.world_size} and of {world_size} ranks form no step"
            self._p.lose(record, CorruptError(said, step=record.id.step), TierState.FAILED)
            return False
        record.world_size = world_size
        return True

    def make_due(self, record: StepRecord, due: Iterable[str]) -> None:
        """Open the step on its tiers, or say at once what became of it there."""
        for name in sorted(self._ledger.books.keys() & set(due) - record.tiers.keys()):
            book = self._ledger.books[name]
            progress = record.tiers[name] = TierProgress()
            self._ledger.unsettled.add(record.id)
            if record.id in book.standing:
                progress.state = TierState.COMMITTED
            elif record.lost or book.forgotten(record.id):
                progress.state, progress.error = TierState.DROPPED, record.error
            elif self._ledger.superseded:
                progress.state = TierState.FAILED
                progress.error = superseded_error(self._ledger.superseded_by).to_dict()

    def _was_committed(self, record: StepRecord, tiers: Iterable[str]) -> None:
        """A node remembers that tiers had the step. Where it stands no more it was pruned: it is not flushed again."""
        for name in sorted(self._ledger.books.keys() & set(tiers)):
            progress, book = record.tiers.get(name), self._ledger.books[name]
            if book.listed and record.id not in book.standing:
                if progress is None:
                    self._p.mark_pruned(record, name)
            elif progress is None:
                record.tiers[name] = TierProgress(TierState.COMMITTED, commit_begun=True)
            elif progress.state in OPEN and progress.state is not TierState.COMMITTING:
                self._p.mark_committed(record, name)

    def _remind(self, record: StepRecord, node: str) -> None:
        """Tell a node that speaks of a step what is settled about it already: the node may be new, or late."""
        if record.lost:
            self._forget(record, node)
            return
        for name, progress in sorted(record.tiers.items()):
            if progress.state is TierState.COMMITTED:
                self._p.to_nodes(events.Committed(name, record.id), node)
            elif progress.state not in OPEN:
                self._p.to_nodes(events.CancelFlush(name, record.id), node)
        if record.whole:
            self._p.to_nodes(events.BecameWhole(record.id), node)

    def _forget(self, record: StepRecord, node: str) -> None:
        if record.lost == "gone":
            self._p.to_nodes(events.Release(record.id), node)
            return
        message = record.error["message"] if record.error is not None else record.lost
        self._p.to_nodes(events.Forget(record.id, str(message)), node)

    # -- in memory ----------------------------------------------------------------------------------------------------
    def received(self, event: events.MemoryReceipt) -> None:
        """An image is whole in the memory of a node."""
        record = self._p.record(event.record.id.checkpoint)
        if record.lost:
            self._forget(record, event.node)
        elif self._learn(record, actions.KnownImage(event.record, event.header)):
            for places in (record.held, record.memory):
                places.setdefault(event.record.id, set()).add(event.node)
            self._p.advance(record)
            self._p.changed(record)

    def found(self, tier: str, image: actions.KnownImage) -> None:
        """An image stands on a tier since before a restart: the step may be complete there."""
        record = self._admit(image.record.id.checkpoint)
        if not record.lost and self._fits(record, image.header.world_size):
            record.announce(image.record.id, image.header.image_count)
            self._learn(record, image)
        self.make_due(record, [tier])

    def _learn(self, record: StepRecord, image: actions.KnownImage) -> bool:
        """Take an image into the step, unless it contradicts what is known of it."""
        id_ = image.record.id
        known = record.known.setdefault(id_, image)
        if known.record == image.record and image.header.id == id_:
            return True
        error = CorruptError(f"{id_} is described in two ways", hint="two copies of it differ", step=record.id.step)
        self._p.report(error.to_dict())
        self._p.lose(record, error, TierState.FAILED)
        return False

    def memory_gone(self, checkpoint: CheckpointId, node: str, images: Iterable[ImageId]) -> None:
        """A node holds these no more."""
        record = self._ledger.records.get(checkpoint)
        if record is None:
            return
        for image in images:
            record.let_go(image, node)
        if record.told_whole and not record.whole:
            record.told_whole = False
            self._p.to_nodes(events.Release(checkpoint))
        if not record.settled:
            self._p.drop_if_missing(record)
        self._p.changed(record)

    def failed(self, event: events.ImageFailed) -> None:
        """An image is bad. A step not yet whole fails; of a whole one, tiers that lack the image do."""
        record = self._p.record(event.image.checkpoint)
        record.let_go(event.image, event.node)
        if record.lost:
            self._forget(record, event.node)
            return
        self._p.report(event.error)
        if record.check is not Check.PASSED:
            self._p.lose(record, event.error, TierState.FAILED)
            return
        record.error = record.error or event.error
        if event.image not in record.held:
            for name in record.open_tiers:
                if event.image not in record.tiers[name].images:
                    self._p.close_tier(record, name, TierState.FAILED, event.error)
        self.memory_gone(record.id, event.node, [event.image])

    def node_gone(self, node: str) -> None:
        """A node and its memory are lost."""
        self._ledger.untold.discard(node)
        for record in list(self._ledger.records.values()):
            images = [i for i, nodes in record.held.items() if node in nodes]
            self.memory_gone(record.id, node, images)
            lost = [i for i in images if i not in record.held]
            if lost and record.forming:
                self._p.drop(record, f"node {node} was lost with {lost[0]}")
            for name in record.open_tiers if lost else ():
                if any(i not in record.tiers[name].images for i in lost):
                    error = StepLostError(f"node {node} was lost with {lost[0]}", tier=name, step=record.id.step)
                    self._p.close_tier(record, name, TierState.FAILED, error.to_dict())

    def tells_anew(self, node: str) -> None:
        """A node is about to say what it holds; what it said before counts no longer."""
        self._ledger.untold.add(node)
        for record in self._ledger.records.values():
            for image in [i for i, nodes in record.held.items() if node in nodes]:
                record.in_doubt = True
                record.let_go(image, node)
            if record.told_whole and not record.whole:
                record.told_whole = False
                self._p.to_nodes(events.InDoubt(record.id))

    def has_told(self, node: str) -> None:
        """What the node did not name it does not hold."""
        self._ledger.untold.discard(node)
        for record in self._ledger.records.values():
            if record.in_doubt and not self._ledger.untold:
                record.in_doubt = False
                if record.check is Check.PASSED and not record.holds_all(record.held):
                    self._p.to_nodes(events.Release(record.id))
        self._p.drop_incomplete()

    def checked(self, event: events.WholeChecked) -> None:
        """Whether the images cover the step."""
        record = self._ledger.records.get(event.checkpoint)
        if record is None or record.lost or record.check is not Check.RUNNING:
            return
        if event.error is not None:
            self._p.report(event.error)
            self._p.lose(record, event.error, TierState.FAILED)
            return
        record.check = Check.PASSED
        self._p.advance(record)
        self._p.changed(record)

    # -- ranks --------------------------------------------------------------------------------------------------------
    def rank_at(self, event: events.RankAt) -> None:
        """How far a rank is: what it has not staged before, it never will."""
        self._ledger.gone.discard(event.rank)
        self._ledger.at[event.rank] = event.at
        self._p.drop_incomplete(event.rank)

    def rank_gave_up(self, event: events.RankGaveUp) -> None:
        """A rank went on without the step."""
        record = self._p.record(event.checkpoint)
        if record.forming and not record.staged_by(event.rank):
            self._p.drop(record, f"rank {event.rank} found no slot in time")

    def rank_gone(self, event: events.RankGone) -> None:
        """A rank will stage nothing more."""
        self._ledger.gone.add(event.rank)
        self._p.drop_incomplete(event.rank)


def superseded_error(attempt: int) -> SupersededError:
    """What everything that is still under way ends with when a later attempt owns the run."""
    return SupersededError(
        f"attempt {attempt} owns the run now",
        hint="another job of the same run was started; end this one",
    )
