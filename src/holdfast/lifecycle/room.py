"""What a node frees, gives up and flushes next. Pure questions to `NodeState`; node.py acts on the answers.

Three rules, in this order:

1. Nothing that is busy (sealed, verified, pinned, in flush) is freed; nor is the newest whole step, nor an image that
   another here relies on, nor the one a rank's next step may rely on.
2. What nobody needs is freed at once: forgotten steps, and whole ones beyond `keep_last` with nothing left to flush.
3. Every rank has room for its next save ahead of it: the oldest step with nothing left to flush yields first, then
   (only where tiers lag) the oldest whose flushes to lagging tiers have not begun; those are skipped. For an image that
   later steps share there is room when a save waits for it, not before: it is staged rarely.
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
    if occupant.state is SlotState.BAD or not (step.wanted or occupant.shared):
        return False
    if occupant.shared:
        # It is here for the sake of those that rely on it, or of its own step: with that it goes.
        own = (o for o in state.occupants(occupant.checkpoint) if o.image.rank == occupant.image.rank and not o.shared)
        return state.is_needed(occupant) or any(_worth_keeping(state, o, kept) for o in own)
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


def lacks_room(state: NodeState, rank: int, image: int = 0) -> bool:
    """Whether the rank would find no free slot for its image of this number."""
    return not any(s.occupant is None for s in state.slots.values() if (s.rank, s.image) == (rank, image))


def victim(state: NodeState, rank: int | None = None, image: int = 0) -> Occupant | None:
    """Rule 3: the image (of this rank, or any) whose step yields."""
    older = sorted(_older(state, rank, image), key=lambda o: o.image)
    free = [o for o in older if not o.busy]
    idle = next((o for o in free if not o.waiting), None)
    return idle or next((o for o in free if may_skip(state, o)), None)


def _older(state: NodeState, rank: int | None, image: int = 0) -> Iterator[Occupant]:
    """Images of the rank older than the newest whole step (what is newer than that is only forming).

    A shared one is let go by letting go those that rely on it.
    """
    newest = state.newest_whole()
    if newest is None:
        return
    for slot in state.slots.values():
        o = slot.occupant
        if o is None or (rank is not None and (slot.rank, slot.image) != (rank, image)):
            continue
        if not state.is_needed(o):
            yield from [o] if o.checkpoint < newest else ()
        elif rank is not None and not state.may_be_named(o):
            users = state.users(o.image)
            yield from users if all(u.checkpoint < newest for u in users) else ()


def may_skip(state: NodeState, occupant: Occupant) -> bool:
    """Whether every flush the image waits for is to a lagging tier that has not begun the step."""
    begun = state.steps[occupant.checkpoint].begun
    return all(state.tiers[t].lagging and t not in begun for t in occupant.waiting)


def held_up_by(state: NodeState, rank: int, image: int = 0) -> set[str]:
    """Tiers whose flushes keep slots of this rank that would yield otherwise."""
    moving = (Flush.WAITING, *RUNNING)
    return {t for o in _older(state, rank, image) for t, f in o.flushes.items() if f in moving and t in state.tiers}


def startable(state: NodeState, tier: str, checkpoint: CheckpointId) -> list[Occupant]:
    """What can be flushed now so that the step comes to the tier: what is shared goes before what relies on it.

    So whatever stands on a tier, what it relies on stands there too, and nothing here is let go of too early.
    """
    found: dict[int, Occupant] = {}
    for o in state.occupants(checkpoint):
        if tier in o.waiting and o.flushable:
            # What is not here may stand there all the same: if not, the run machine gives the step up.
            relied = (x for i in o.relies_on if (x := state.holding(i)) is not None)
            lacking = [x for x in relied if tier not in x.stands]
            ready = (x for x in lacking if x.flushable and x.flushes.get(tier) not in RUNNING)
            found |= {x.slot: x for x in (ready if lacking else [o])}
    return [found[slot] for slot in sorted(found)]


def next_step(state: NodeState, tier: NodeTier) -> CheckpointId | None:
    """The step a tier flushes next (or goes on with), or None.

    One step at a time; an urgent one first, then what has begun, then the oldest; when lagging, the newest.
    """
    name = tier.rule.name
    waiting = {o.checkpoint for o in state.occupants() if o.flushable and name in o.waiting}
    ready = {c for c in waiting if startable(state, name, c)}
    if any(o.flushes.get(name) in RUNNING for o in state.occupants()):
        return tier.flushing if tier.flushing in ready else None
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
    running = {
        o.checkpoint for o in state.occupants() if not o.shared and any(f in RUNNING for f in o.flushes.values())
    }
    return len(running | {checkpoint}) <= max(1, _depth(state) - 2)


def _depth(state: NodeState) -> int:
    """How many steps fit at once: of the rank with the fewest slots."""
    counts = []
    for rank in ranks(state):
        counts.append(sum((s.rank, s.image) == (rank, 0) for s in state.slots.values()))
    return min(counts, default=1 << 30)


def caught_up(state: NodeState, tier: NodeTier) -> bool:
    """Nothing waits or runs, and nothing had to give way while the last flush ran."""
    name = tier.rule.name
    moving = any(o.flushes.get(name) in (Flush.WAITING, *RUNNING) for o in state.occupants())
    return not moving and not tier.skipped_since_begin
