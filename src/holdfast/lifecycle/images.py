"""The run machine's part about images: who staged what, what is whole, what is bad."""

from __future__ import annotations

from collections.abc import Iterable

from holdfast.errors import CorruptError, SkippedError, SupersededError
from holdfast.lifecycle import actions, events
from holdfast.lifecycle.presence import Presence
from holdfast.lifecycle.progress import Progress
from holdfast.lifecycle.steps import OPEN, Check, StepRecord, TierProgress, TierState
from holdfast.model.identity import CheckpointId, ImageId


class Images:
    """Invariant: a step becomes whole only when every image any rank announced is verified and the check passed.

    Threads: none.
    """

    def __init__(self, progress: Progress, presence: Presence) -> None:
        self._p = progress
        self._presence = presence
        self._ledger = progress.ledger

    # -- announced ----------------------------------------------------------------------------------------------------
    def staged(self, event: events.ImageStaged) -> None:
        """A rank staged an image."""
        self._ledger.gone.discard(event.image.rank)
        self._ledger.hear_of(event.image, event.world_size)
        if event.image.image:
            self._shared_staged(event)
            return
        record = self._admit(event.image.checkpoint)
        if not record.lost and self._fits(record, event.world_size):
            self._announce(record, event.image, event.image_count, event.relies_on)
        record.held.setdefault(event.image, set()).add(event.node)
        self._was_committed(record, event.committed)
        self.make_due(record, event.due)
        self._skip_unagreed(record, event)
        self._remind(record, event.node)
        self._p.advance(record)
        self._p.drop_if_missing(record)
        self._p.changed(record)
        self._p.delete_passed()

    def _skip_unagreed(self, record: StepRecord, event: events.ImageStaged) -> None:
        """A rank that read too late that a tier is due has no flush to it: the step is given up there for all.

        An image that a load brought is due nowhere, and says nothing.
        """
        for tier in sorted(record.note_due(event.due, event.timed)) if event.due else ():
            error = SkippedError(
                "a rank read too late that this step is due here; a later one takes its place",
                tier=tier,
                step=record.id.step,
            )
            self._p.close_open(record.id, tier, TierState.SKIPPED, error.to_dict())

    def _announce(self, record: StepRecord, image: ImageId, count: int, relies_on: Iterable[ImageId]) -> None:
        """A rank's first image names the others of its step: older ones, or of this very step."""
        record.announce(image, count)
        relied = {i.image: i for i in relies_on}
        for number in range(1, count):
            own = ImageId(image.attempt, image.step, image.rank, number)
            self._ledger.sharing.link(record, relied.get(number, own))

    def _shared_staged(self, event: events.ImageStaged) -> None:
        """It is of no step until the first image of one names it."""
        self._ledger.sharing.of(event.image).hold(event.node)
        for record in self._ledger.steps_of(event.image):
            if not record.lost:
                self._ledger.sharing.fill(record, event.image)
                self._p.advance(record)
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
            progress = self._ledger.sharing.begin(record, name)
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
        image = actions.KnownImage(event.record, event.header)
        if event.record.id.image:
            shared = self._ledger.sharing.of(event.record.id)
            shared.known = shared.known or image
            shared.hold(event.node)
            shared.memory.add(event.node)
            records = [r for r in self._ledger.steps_of(event.record.id) if not r.lost]
        else:
            records = [self._p.record(event.record.id.checkpoint)]
        for record in records:
            self._received(record, image, event.node)

    def _received(self, record: StepRecord, image: actions.KnownImage, node: str) -> None:
        if record.lost:
            # Of what is gone every node that had any was told; by now the node may have fetched it again.
            if record.lost != "gone":
                self._forget(record, node)
        elif self._learn(record, image):
            if image.record.id in record.shared:
                record.announce(image.record.id, record.image_counts[image.record.id.rank])
            for places in (record.held, record.memory):
                places.setdefault(image.record.id, set()).add(node)
            self._p.advance(record)
            self._p.changed(record)

    def found(self, tier: str, image: actions.KnownImage) -> None:
        """An image stands on a tier since before a restart: the step may be complete there."""
        self._ledger.hear_of(image.record.id, image.header.world_size)
        if image.record.id.image:
            shared = self._ledger.sharing.of(image.record.id)
            shared.known = shared.known or image
            shared.tiers.add(tier)
            for record in self._ledger.steps_of(image.record.id):
                if not record.lost:
                    self._ledger.sharing.fill(record, image.record.id)
                    self._p.advance(record)
                    self._p.changed(record)
            return
        record = self._admit(image.record.id.checkpoint)
        if not record.lost and self._fits(record, image.header.world_size):
            self._announce(record, image.record.id, image.header.image_count, image.header.relies_on)
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

    # -- checked ------------------------------------------------------------------------------------------------------
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

    def failed(self, event: events.ImageFailed) -> None:
        """An image is bad. A step not yet whole fails; of a whole one, tiers that lack the image do."""
        if not event.image.image:
            self._failed(self._p.record(event.image.checkpoint), event)
            return
        for record in self._ledger.steps_of(event.image):
            self._failed(record, event)
        self._presence.memory_gone(event.node, event.image)

    def _failed(self, record: StepRecord, event: events.ImageFailed) -> None:
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
        self._presence.let_go(record, event.node, [event.image])


def superseded_error(attempt: int) -> SupersededError:
    """What everything that is still under way ends with when a later attempt owns the run."""
    return SupersededError(
        f"attempt {attempt} owns the run now",
        hint="another job of the same run was started; end this one",
    )
