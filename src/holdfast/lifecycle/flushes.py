"""The node machine's part about flushes: which begins, what its answer means, which gives way."""

from __future__ import annotations

from collections.abc import Callable

from holdfast.lifecycle import actions, events, room
from holdfast.lifecycle.slots import RUNNING, Flush, NodeState, NodeTier, Occupant, SlotState
from holdfast.model.identity import CheckpointId, ImageId


class Flushes:
    """Invariants: an image is flushed to a tier at most once at a time; each tier flushes one step at a time; an answer
    to a flush that was cancelled meanwhile does not count, even if the same flush is wanted again.

    Threads: none.
    """

    def __init__(self, node: str, state: NodeState, do: Callable[[actions.NodeAction], None]) -> None:
        self._node = node
        self._state = state
        self._do = do
        self._begun = 0

    # -- answers ------------------------------------------------------------------------------------------------------
    def uploaded(self, event: events.Uploaded) -> None:
        """An image stands on a tier."""
        occupant = self._state.at(event.slot)
        if occupant is None or occupant.flushes.get(event.tier) not in RUNNING:
            return
        counts = self._end(occupant, event.tier)
        if counts and occupant.shared:
            occupant.stands.add(event.tier)
        if counts or event.tier not in occupant.flushes:
            # Also what no longer counts stands there now: the run machine has it removed. What is wanted again is
            # flushed again before it counts, because a removal may just have taken it away.
            self._tell(events.TierReceipt(self._node, event.tier, occupant.image))
        tier = self._state.tiers.get(event.tier)
        if tier is not None:
            tier.degraded = None
            tier.lagging = tier.lagging and not room.caught_up(self._state, tier)

    def failed(self, event: events.UploadFailed) -> None:
        """An image will not stand on a tier, so neither will its step."""
        occupant = self._state.at(event.slot)
        if occupant is None or occupant.flushes.get(event.tier) not in RUNNING:
            return
        if self._end(occupant, event.tier):
            if occupant.shared:
                occupant.flushes.pop(event.tier)  # for later steps it is tried again
            for image in self._failed_with(occupant, event.tier):
                self._state.cancel(event.tier, image.checkpoint)
                self._tell(events.FlushFailed(self._node, event.tier, image, event.error))
        if event.tier in self._state.tiers and occupant.state is not SlotState.BAD:
            self._state.tiers[event.tier].degraded = event.error

    def _failed_with(self, occupant: Occupant, tier: str) -> list[ImageId]:
        """The images whose steps fail: for a shared one those of the step it was flushed for; later ones try again."""
        known = self._state.tiers.get(tier)
        step = known.flushing if known is not None else None
        if not occupant.shared or step == occupant.checkpoint:
            return [occupant.image]
        return [o.image for o in self._state.users(occupant.image) if o.checkpoint == step]

    def _end(self, occupant: Occupant, tier: str) -> bool:
        """Note that a flush ended; whether its answer counts. One cancelled and wanted again waits anew."""
        step = self._state.steps[occupant.checkpoint]
        if occupant.flushes[tier] is Flush.RUNNING:
            occupant.flushes[tier] = Flush.COMMITTED if tier in step.committed else Flush.UPLOADED
            return True
        off = tier in step.off or step.forgotten or tier not in self._state.tiers
        if off or occupant.state is SlotState.BAD:
            del occupant.flushes[tier]
        else:
            occupant.flushes[tier] = Flush.WAITING
        return False

    # -- what the run machine says ------------------------------------------------------------------------------------
    def committed(self, event: events.Committed) -> None:
        """The step's manifest stands on the tier."""
        step = self._state.steps.get(event.checkpoint)
        if step is None:
            return
        step.committed.add(event.tier)
        for occupant in self._state.occupants(event.checkpoint):
            if occupant.flushes.get(event.tier) not in RUNNING:
                occupant.flushes[event.tier] = Flush.COMMITTED
            self._do(actions.MarkCommitted(occupant.slot, occupant.generation, event.tier))
        for occupant in self._state.shared_by(event.checkpoint):
            if event.tier not in occupant.stands and occupant.state is not SlotState.BAD:
                occupant.stands.add(event.tier)
                self._tell(events.TierReceipt(self._node, event.tier, occupant.image))

    def copies_in_doubt(self, event: events.CopiesInDoubt) -> None:
        """A manifest that names them could not be published: what the step shares is flushed again before it counts."""
        for occupant in self._state.shared_by(event.checkpoint):
            if occupant.flushes.get(event.tier) not in RUNNING:
                occupant.stands.discard(event.tier)
                occupant.flushes.pop(event.tier, None)

    def promote(self, event: events.Promote) -> None:
        """Flush the step to the tier ahead of everything else, due or not."""
        step = self._state.steps.get(event.checkpoint)
        tier = self._state.tiers.get(event.tier)
        if step is None or tier is None or step.forgotten:
            return
        step.off.discard(event.tier)
        step.committed.discard(event.tier)
        tier.urgent = event.checkpoint
        for occupant in self._state.occupants(event.checkpoint):
            # What a page says is committed may have been pruned since: the run machine has looked.
            flushed = occupant.flushes.get(event.tier, Flush.COMMITTED) is not Flush.COMMITTED
            if occupant.state is not SlotState.BAD and not flushed:
                occupant.flushes[event.tier] = Flush.WAITING

    # -- beginning and giving way -------------------------------------------------------------------------------------
    def begin_all(self) -> None:
        """Begin what every tier can begin now.

        The tier that began longest ago goes first, so that lagging tiers share what room there is.
        """
        for tier in sorted(self._state.tiers.values(), key=lambda t: t.last_begun):
            checkpoint = room.next_step(self._state, tier)
            if checkpoint is not None:
                self._begin(tier, checkpoint)

    def _begin(self, tier: NodeTier, checkpoint: CheckpointId) -> None:
        name, step = tier.rule.name, self._state.steps[checkpoint]
        if name not in step.begun:
            if tier.lagging:
                self._skip_older(name, checkpoint)
            step.begun.add(name)
            tier.skipped_since_begin = False
            self._begun += 1
            tier.last_begun = self._begun
            self._tell(events.FlushBegun(self._node, name, checkpoint))
        tier.flushing = checkpoint
        for occupant in room.startable(self._state, name, checkpoint):
            occupant.flushes[name] = Flush.RUNNING
            self._do(actions.Upload(name, occupant.slot, occupant.image, occupant.record))

    def _skip_older(self, tier: str, newest: CheckpointId) -> None:
        """What a lagging tier has not begun gives way to the newer step it begins."""
        waiting = {o.checkpoint for o in self._state.occupants() if tier in o.waiting}
        for checkpoint in sorted(c for c in waiting if c < newest and tier not in self._state.steps[c].begun):
            self.skip(tier, checkpoint)

    def skip(self, tier: str, checkpoint: CheckpointId) -> None:
        """Give the step up on the tier."""
        self._state.cancel(tier, checkpoint)
        self._state.tiers[tier].skipped_since_begin = True
        self._tell(events.FlushSkipped(self._node, tier, checkpoint))

    def _tell(self, event: events.FromNode) -> None:
        self._do(actions.ToRun(event))
