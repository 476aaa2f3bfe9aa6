"""What a node frees, gives up and flushes next. Pure questions to `NodeState`; node.py acts on the answers.

Three rules, in this order:

1. Nothing that is busy (sealed, verified, pinned, in flush) is freed; nor is the newest whole step.
2. What nobody needs is freed at once: forgotten steps, and whole ones beyond `keep_last` with nothing left to flush.
3. Every rank has room for its next save ahead of it: the oldest step with nothing left to flush yields first, then
   (only where tiers lag) the oldest whose flushes to lagging tiers have not begun; those are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator

from holdfast.lifecycle.slots import RUNNING, Flush, NodeState, NodeTier, Occupant, SlotState
from holdfast.model.identity import CheckpointId


def unneeded(state: NodeState) -> list[Occupant]:
    """Rule 2: what can be freed now and is not worth keeping."""
    kept = _kept(state)
    return [o for o in state.occupants() if not o.busy and not o.waiting and not _worth_keeping(state, o, kept)]


def _worth_keeping(state: NodeState, occupant: Occupant, kept: set[CheckpointId]) -> bool:
    step = state.steps[occupant.checkpoint]
    if occupant.state is SlotState.BAD or not step.wanted:
        return False
    return not step.whole or occupant.checkpoint in kept


def _kept(state: NodeState) -> set[CheckpointId]:
    """The whole steps memory keeps: the newest `keep_last`; with no memory tier the newest until it is durable."""
    whole = sorted((c for c, s in state.steps.items() if s.whole and s.wanted), reverse=True)
    if state.keep_last == 0:
        return {c for c in whole[:1] if not state.steps[c].committed}
    return set(whole[: state.keep_last])


def ranks(state: NodeState) -> list[int]:
    """Ranks that have slots here."""
    return sorted({s.rank for s in state.slots.values() if s.rank is not None})


def lacks_room(state: NodeState, rank: int) -> bool:
    """Whether the rank's next save would find too few free slots."""
    own = [s.occupant for s in state.slots.values() if s.rank == rank]
    return own.count(None) < max((o.image_count for o in own if o is not None), default=1)


def victim(state: NodeState, rank: int | None = None) -> Occupant | None:
    """Rule 3: the image (of this rank, or any) whose step yields."""
    older = sorted(_older(state, rank), key=lambda o: o.image)
    free = [o for o in older if not o.busy]
    idle = next((o for o in free if not o.waiting), None)
    return idle or next((o for o in free if may_skip(state, o)), None)


def _older(state: NodeState, rank: int | None) -> Iterator[Occupant]:
    """Images of the rank older than the newest whole step (what is newer than that is only forming)."""
    newest = state.newest_whole()
    for slot in state.slots.values():
        o = slot.occupant
        if o is not None and newest is not None and o.checkpoint < newest and rank in (None, slot.rank):
            yield o


def may_skip(state: NodeState, occupant: Occupant) -> bool:
    """Whether every flush the image waits for is to a lagging tier that has not begun the step."""
    begun = state.steps[occupant.checkpoint].begun
    return all(state.tiers[t].lagging and t not in begun for t in occupant.waiting)


def held_up_by(state: NodeState, rank: int) -> set[str]:
    """Tiers whose flushes keep slots of this rank that would yield otherwise."""
    moving = (Flush.WAITING, *RUNNING)
    return {t for o in _older(state, rank) for t, f in o.flushes.items() if f in moving and t in state.tiers}


def next_step(state: NodeState, tier: NodeTier) -> CheckpointId | None:
    """The step a tier flushes next (or goes on with), or None.

    One step at a time; an urgent one first, then what has begun, then the oldest; when lagging, the newest.
    """
    name = tier.rule.name
    ready = {o.checkpoint for o in state.occupants() if o.flushable and name in o.waiting}
    running = {o.checkpoint for o in state.occupants() if o.flushes.get(name) in RUNNING}
    if running:
        return next(iter(sorted(ready & running)), None)
    if not ready:
        return None
    if tier.urgent in ready:
        return tier.urgent
    begun = [c for c in sorted(ready) if name in state.steps[c].begun]
    if begun or not tier.lagging:
        return begun[0] if begun else min(ready)
    return max(ready) if _leaves_room(state, max(ready)) else None


def _leaves_room(state: NodeState, checkpoint: CheckpointId) -> bool:
    """Whether flushing this step too leaves every rank a slot for the newest whole step and one to fill.

    Slots of a running flush cannot be freed; without this, two lagging tiers could hold all but one.
    """
    running = {o.checkpoint for o in state.occupants() if any(f in RUNNING for f in o.flushes.values())}
    return len(running | {checkpoint}) <= max(1, _depth(state) - 2)


def _depth(state: NodeState) -> int:
    """How many steps fit at once: of the rank with the fewest slots."""
    counts = []
    for rank in ranks(state):
        own = [s.occupant for s in state.slots.values() if s.rank == rank]
        counts.append(len(own) // max((o.image_count for o in own if o is not None), default=1))
    return min(counts, default=1 << 30)


def caught_up(state: NodeState, tier: NodeTier) -> bool:
    """Nothing waits or runs, and nothing had to give way while the last flush ran."""
    name = tier.rule.name
    moving = any(o.flushes.get(name) in (Flush.WAITING, *RUNNING) for o in state.occupants())
    return not moving and not tier.skipped_since_begin
