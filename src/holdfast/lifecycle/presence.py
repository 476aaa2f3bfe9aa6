"""The run machine's part about who is there: nodes and what they hold, ranks and how far they are."""

from __future__ import annotations

from collections.abc import Iterable

from holdfast.errors import StepLostError
from holdfast.lifecycle import events
from holdfast.lifecycle.progress import Progress
from holdfast.lifecycle.steps import Check, StepRecord, TierState
from holdfast.model.identity import ImageId


class Presence:
    """Invariant: a step that lacks an image nobody holds or will stage any more is dropped, not waited for.

    Threads: none.
    """

    def __init__(self, progress: Progress) -> None:
        self._p = progress
        self._ledger = progress.ledger

    # -- nodes --------------------------------------------------------------------------------------------------------
    def memory_gone(self, node: str, image: ImageId) -> None:
        """A node holds the image no more."""
        shared = self._ledger.sharing.images.get(image)
        if shared is not None:
            shared.let_go(node)
        for record in self._ledger.steps_of(image):
            self.let_go(record, node, [image])
        self._p.forget_shared(self._ledger.sharing.idle([image]))

    def let_go(self, record: StepRecord, node: str, images: Iterable[ImageId]) -> None:
        """A node has these images of a step no more: the step may not be whole any longer, or never become so."""
        for image in images:
            record.let_go(image, node)
        if record.told_whole and not record.whole:
            record.told_whole = False
            self._p.to_nodes(events.Release(record.id))
        if not record.settled:
            self._p.drop_if_missing(record)
        self._p.changed(record)

    def node_gone(self, node: str) -> None:
        """A node and its memory are lost."""
        self._ledger.untold.discard(node)
        for shared in self._ledger.sharing.images.values():
            shared.let_go(node)
        for record in list(self._ledger.records.values()):
            images = [i for i, nodes in record.held.items() if node in nodes]
            self.let_go(record, node, images)
            lost = [i for i in images if i not in record.held]
            if lost and record.forming:
                self._p.drop(record, f"node {node} was lost with {lost[0]}")
            for name in record.open_tiers if lost else ():
                if any(i not in record.tiers[name].images for i in lost):
                    error = StepLostError(f"node {node} was lost with {lost[0]}", tier=name, step=record.id.step)
                    self._p.close_tier(record, name, TierState.FAILED, error.to_dict())
        self._p.forget_idle()
        self._p.delete_everywhere()

    def tells_anew(self, node: str) -> None:
        """A node is about to say what it holds; what it said before counts no longer."""
        self._ledger.untold.add(node)
        for shared in self._ledger.sharing.images.values():
            shared.let_go(node)
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
                if record.over:
                    # Nobody holds it any more: it lets go of what it shared.
                    self._p.changed(record)
        self._p.drop_incomplete()
        self._p.forget_idle()
        self._p.delete_everywhere()

    # -- ranks --------------------------------------------------------------------------------------------------------
    def rank_at(self, event: events.RankAt) -> None:
        """How far a rank is: what it has not staged before, it never will."""
        self._ledger.gone.discard(event.rank)
        self._ledger.at[event.rank] = event.at
        self._p.drop_incomplete(event.rank)
        self._p.delete_passed()

    def rank_gave_up(self, event: events.RankGaveUp) -> None:
        """A rank went on without the step."""
        self._ledger.finish(event.rank, event.checkpoint)
        record = self._p.record(event.checkpoint)
        if record.forming and not record.staged_by(event.rank):
            self._p.drop(record, f"rank {event.rank} found no slot in time")
        self._p.delete_passed()

    def rank_gone(self, event: events.RankGone) -> None:
        """A rank will stage nothing more."""
        self._ledger.gone.add(event.rank)
        self._p.drop_incomplete(event.rank)
        self._p.delete_passed()
