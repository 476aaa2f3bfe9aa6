"""The node machine: slots, checksums and flushes of one node. Events in, actions out.

It decides what is sealed, flushed, skipped and freed here; what a step is worth for the run it is told by the run
machine (`LineageChanged`, `BecameWhole`, `InDoubt`, `Committed`, `CancelFlush`, `Release`, `Forget`, `Promote`,
`FreeAll`). occupants.py and flushes.py hold two of its concerns, slots.py what it knows, room.py how it chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from holdfast.lifecycle import actions, events, room
from holdfast.lifecycle.flushes import Flushes
from holdfast.lifecycle.occupants import Occupants
from holdfast.lifecycle.slots import (
    Flush,
    NodeState,
    NodeTier,
    Occupant,
    SlotState,
    SlotView,
    TierView,
    slot_view,
    tier_view,
)
from holdfast.model.identity import CheckpointId
from holdfast.model.image import ImageRecord
from holdfast.model.place import TierRule


class NodeMachine:
    """Invariants:

    - a slot is freed only when nobody seals, verifies, reads or flushes it, and no flush waits for it;
    - the newest whole step of the lineage stays until a newer one is whole, or the run machine forgets it;
    - each tier flushes one step at a time; a lagging tier's flush not yet begun holds no slot a save needs;
    - state is bounded by the number of slots.
    Threads: none; one event at a time.
    """

    def __init__(self, node: str, rules: Sequence[TierRule], *, slot_wait_s: float) -> None:
        self.node = node
        self._slot_wait_s = slot_wait_s
        self._state = NodeState({}, {}, _tiers(rules, {}), _keep_last(rules))
        self._overdue: set[int] = set()
        """Ranks that have waited for a slot for longer than `slot_wait_s`, and still do."""
        self._out: list[actions.NodeAction] = []
        self._occupants = Occupants(node, self._state, self._do)
        self._flushes = Flushes(node, self._state, self._do)
        self._on: dict[type[Any], Callable[[Any], None]] = {
            events.TimerFired: self._timer_fired,
            events.Reconfigured: self._reconfigured,
            events.RankAt: self._tell,
            events.RankGaveUp: self._tell,
            events.RankGone: self._rank_gone,
            events.Dealt: self._occupants.dealt,
            events.Undealt: self._occupants.undealt,
            events.Staged: self._occupants.staged,
            events.Adopted: self._occupants.adopted,
            events.Fetched: self._occupants.fetched,
            events.OwnerGone: self._occupants.owner_gone,
            events.SlotWanted: self._slot_wanted,
            events.SlotWantOver: lambda e: self._want_over(e.rank),
            events.RoomWanted: self._room_wanted,
            events.Pinned: self._occupants.pinned,
            events.Unpinned: self._occupants.unpinned,
            events.FoundBad: self._occupants.found_bad,
            events.Sealed: self._occupants.sealed,
            events.SealFailed: self._occupants.seal_failed,
            events.Verified: self._occupants.sealed,
            events.VerifyFailed: self._occupants.seal_failed,
            events.Uploaded: self._flushes.uploaded,
            events.UploadFailed: self._flushes.failed,
            events.Resend: self._resend,
            events.LineageChanged: self._lineage_changed,
            events.BecameWhole: self._became_whole,
            events.InDoubt: self._in_doubt,
            events.Committed: self._flushes.committed,
            events.CancelFlush: lambda e: self._state.cancel(e.tier, e.checkpoint),
            events.CopiesInDoubt: self._flushes.copies_in_doubt,
            events.Release: self._release,
            events.Forget: lambda e: self._state.forget(e.checkpoint),
            events.Promote: self._flushes.promote,
            events.FreeAll: self._free_all,
        }

    def handle(self, event: events.NodeEvent) -> list[actions.NodeAction]:
        """What is to be done now that this happened."""
        self._on[type(event)](event)
        self._settle()
        out, self._out = self._out, []
        return out

    def slots(self) -> list[SlotView]:
        """Every slot, for status."""
        return [slot_view(n, self._state.slots[n]) for n in sorted(self._state.slots)]

    def tiers(self) -> list[TierView]:
        """Every tier but memory, for status."""
        return [tier_view(self._state, name) for name in self._state.tiers]

    def held(self) -> dict[int, ImageRecord]:
        """Verified images by slot."""
        return {o.slot: o.record for o in self._state.occupants() if o.state is SlotState.HELD and o.record is not None}

    @property
    def checking(self) -> bool:
        """Whether some image is still being sealed or verified."""
        return any(o.state in (SlotState.SEALING, SlotState.VERIFYING) for o in self._state.occupants())

    def newest_whole(self) -> CheckpointId | None:
        """The step this node protects."""
        return self._state.newest_whole()

    # -- waiting saves -------------------------------------------------------------------------------------------------
    def _slot_wanted(self, event: events.SlotWanted) -> None:
        # Another wait of the rank: it counts from now.
        self._overdue.discard(event.rank)
        self._state.wants[event.rank] = event
        self._do(actions.StartTimer(_timer(event.rank), self._slot_wait_s))

    def _want_over(self, rank: int) -> None:
        self._overdue.discard(rank)
        if self._state.wants.pop(rank, None) is not None:
            self._do(actions.StopTimer(_timer(rank)))

    def _timer_fired(self, event: events.TimerFired) -> None:
        """A save waited too long: the tiers that hold its rank's slots are lagging, now or once something is whole."""
        self._overdue |= {rank for rank in self._state.wants if _timer(rank) == event.timer}

    def _room_wanted(self, event: events.RoomWanted) -> None:
        occupant = room.victim(self._state)
        if occupant is not None:
            self._yield(occupant)

    def _rank_gone(self, event: events.RankGone) -> None:
        self._want_over(event.rank)
        self._tell(event)

    # -- what the run machine says -------------------------------------------------------------------------------------
    def _resend(self, event: events.Resend) -> None:
        self._tell(events.TellsAnew(self.node))
        for o in self._state.occupants():
            self._occupants.announce(o)
            if o.state is SlotState.HELD and o.record is not None and o.header is not None:
                self._tell(events.MemoryReceipt(self.node, o.record, o.header))
            for tier, flush in sorted(o.flushes.items()):
                if flush is Flush.RUNNING:
                    self._tell(events.FlushBegun(self.node, tier, o.checkpoint))
                elif flush is Flush.UPLOADED or tier in o.stands:
                    self._tell(events.TierReceipt(self.node, tier, o.image))
        self._tell(events.HasTold(self.node))

    def _lineage_changed(self, event: events.LineageChanged) -> None:
        self._state.lineage, self._state.over = event.lineage, False
        for checkpoint in [c for c in self._state.steps if self._state.abandoned(c)]:
            self._state.forget(checkpoint)

    def _became_whole(self, event: events.BecameWhole) -> None:
        step = self._state.steps.get(event.checkpoint)
        if step is not None and not step.forgotten:
            step.whole = step.wanted = True

    def _in_doubt(self, event: events.InDoubt) -> None:
        step = self._state.steps.get(event.checkpoint)
        if step is not None:
            step.whole = False

    def _release(self, event: events.Release) -> None:
        step = self._state.steps.get(event.checkpoint)
        if step is not None:
            step.wanted = step.whole = False

    def _free_all(self, event: events.FreeAll) -> None:
        self._state.over = True
        for checkpoint in list(self._state.steps):
            self._state.forget(checkpoint)

    def _reconfigured(self, event: events.Reconfigured) -> None:
        self._slot_wait_s = event.slot_wait_s
        known = self._state.tiers
        self._state.tiers = _tiers(event.rules, known)
        self._state.keep_last = _keep_last(event.rules)
        for name in [n for n, old in known.items() if self._state.tiers.get(n) is not old]:
            for checkpoint in self._state.steps:
                self._state.cancel(name, checkpoint)
            for occupant in self._state.occupants():
                occupant.drop(name)

    # -- after every event ---------------------------------------------------------------------------------------------
    def _settle(self) -> None:
        self._flushes.begin_all()
        self._free_unneeded()
        self._make_room_for_all()
        if self._blame():
            self._make_room_for_all()
        for checkpoint in self._state.steps.keys() - {o.checkpoint for o in self._state.occupants()}:
            del self._state.steps[checkpoint]

    def _free_unneeded(self) -> None:
        while unneeded := room.unneeded(self._state):
            # What one relied on may be needed no more with it.
            for occupant in unneeded:
                self._occupants.free(occupant)

    def _blame(self) -> bool:
        """Mark the tiers that hold up an overdue save as lagging; whether there are any."""
        waits = [(rank, self._state.wants[rank].image) for rank in sorted(self._overdue)]
        late = [(rank, image) for rank, image in waits if room.lacks_room(self._state, rank, image)]
        guilty = {tier for rank, image in late for tier in room.held_up_by(self._state, rank, image)}
        for tier in guilty:
            self._state.tiers[tier].lagging = True
        return bool(guilty)

    def _make_room_for_all(self) -> None:
        for rank in room.ranks(self._state):
            self._make_room(rank, 0)
        for rank, want in sorted(self._state.wants.items()):
            self._make_room(rank, want.image)

    def _make_room(self, rank: int, image: int) -> None:
        """Keep a slot free ahead of the rank's next save; for what steps share, when it is asked for."""
        while room.lacks_room(self._state, rank, image):
            occupant = room.victim(self._state, rank, image)
            if occupant is None:
                return
            self._yield(occupant)

    def _yield(self, occupant: Occupant) -> None:
        for tier in sorted(occupant.waiting):
            self._flushes.skip(tier, occupant.checkpoint)
        self._state.steps[occupant.checkpoint].wanted = False
        self._free_unneeded()

    def _tell(self, event: events.FromNode) -> None:
        self._do(actions.ToRun(event))

    def _do(self, action: actions.NodeAction) -> None:
        self._out.append(action)


def _tiers(rules: Sequence[TierRule], known: dict[str, NodeTier]) -> dict[str, NodeTier]:
    """The tiers that get flushes; a tier that stays where it was keeps its marks."""
    tiers = {r.name: NodeTier(r) for r in rules if not r.is_memory}
    for name, old in known.items():
        if name in tiers and tiers[name].rule.url == old.rule.url:
            old.rule = tiers[name].rule
            tiers[name] = old
    return tiers


def _keep_last(rules: Sequence[TierRule]) -> int:
    """Whole steps memory keeps. None would keep every step; the slots there are bound it to the newest."""
    memory = next((r for r in rules if r.is_memory), None)
    return 0 if memory is None else memory.keep_last or 1


def _timer(rank: int) -> str:
    return f"slot-wait-{rank}"
