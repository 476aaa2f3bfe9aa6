"""What the agent tells of itself: answers to handles, the list of steps, the whole status."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from holdfast.agent.contents import View
from holdfast.agent.verdict import judge
from holdfast.agent.view import AgentView, Shelved
from holdfast.lifecycle.slots import SlotView, TierView
from holdfast.lifecycle.steps import StepStatus
from holdfast.model.identity import CheckpointId
from holdfast.model.image import ImageRecord
from holdfast.model.place import Keep
from holdfast.units import format_bytes, format_seconds
from holdfast.wire import status as told
from holdfast.wire.messages import SaveStatus, StepInfo, TierState


def save_status(known: StepStatus) -> SaveStatus:
    """What the run machine knows of a step, for its handle."""
    tiers = {n: TierState(t.state, dict(t.error) if t.error else None) for n, t in known.tiers.items()}
    return SaveStatus(known.memory, tiers, dict(known.error) if known.error else None)


def save_status_by_tiers(shelved: View, checkpoint: CheckpointId) -> SaveStatus:
    """The same of a step this agent knows nothing of: from what is committed. It waits where nobody can look, for that
    tier may have it: it is not settled then."""
    committed = shelved.committed.get(checkpoint, [])
    tiers = {t: TierState("waiting", e.to_dict()) for t, e in shelved.unread.items()}
    tiers |= {t: TierState("committed") for t in committed}
    return SaveStatus("gone" if committed else "lost", tiers)


def step_infos(shelved: View, whole: Iterable[CheckpointId], held: Iterable[ImageRecord]) -> list[StepInfo]:
    """Every step that exists anywhere: whole in memory here, or committed on a tier; oldest first."""
    places: dict[CheckpointId, list[str]] = {c: list(t) for c, t in shelved.committed.items()}
    for checkpoint in whole:
        if checkpoint not in shelved.tombstoned:
            places.setdefault(checkpoint, []).insert(0, "memory")
    sizes: dict[CheckpointId, int] = {}
    for record in held:
        sizes[record.id.checkpoint] = sizes.get(record.id.checkpoint, 0) + record.size_bytes
    return [
        StepInfo(
            step=c.step,
            attempt=c.attempt,
            tiers=tiers,
            size_bytes=sizes.get(c, shelved.sizes.get(c, 0)),
            abandoned=bool(shelved.attempts) and c not in shelved.lineage,
            problem="; ".join(shelved.damaged.get(c, [])),
        )
        for c, tiers in sorted(places.items())
    ]


def status_of(view: AgentView) -> told.Status:
    """Everything, judged. Keys are listed in docs/reference.md."""
    settings = view.settings
    status = told.Status(
        run=settings.run,
        home=settings.home,
        arena=str(view.arena),
        pid=view.pid,
        attempt=view.attempt,
        superseded_by=view.superseded_by,
        launch=view.launch,
        world_size=view.world_size,
        arena_bytes=view.arena_bytes,
        arena_size=format_bytes(view.arena_bytes),
        errors=view.error_count,
        trainers=list(view.trainers),
        tiers=[_tier(view, t) for t in view.tiers],
        slots=[_slot(view, s) for s in view.slots],
        steps=[_step(s) for s in view.steps],
        last_errors=[_error(at_s, e) for at_s, e in view.errors],
    )
    verdict = judge(status, view.now_s)
    return msgspec.structs.replace(
        status,
        level=verdict.level,
        headline=verdict.headline,
        summary=verdict.summary,
        problems=list(verdict.problems),
    )


def _error(at_s: float, error: Mapping[str, Any]) -> dict[str, Any]:
    return {"at_s": at_s, **error}


def _tier(view: AgentView, tier: TierView) -> told.Tier:
    shelved = view.shelved.get(tier.name, Shelved())
    rule = next((r for r in view.settings.tiers if r.name == tier.name), None)
    return told.Tier(
        name=tier.name,
        url=rule.url if rule else "",
        every_steps=rule.every_steps if rule else None,
        every_s=rule.every_s if rule else None,
        keeps=_keeps(rule.keep) if rule else "",
        max_bytes_per_s=shelved.max_bytes_per_s,
        lagging=tier.lagging,
        degraded=dict(tier.degraded) if tier.degraded else None,
        waiting=tier.waiting,
        running=tier.running,
        oldest_s=view.oldest_s(tier.name),
        flushed_bytes=shelved.flushed_bytes,
        flush_bytes_per_s=shelved.flushed_bytes / shelved.flush_s if shelved.flush_s else 0.0,
        newest_committed=view.newest_committed(tier.name),
        recyclable_files=shelved.recyclable_files,
        recyclable_bytes=shelved.recyclable_bytes,
        repaired=shelved.repaired,
    )


def _keeps(keep: Keep) -> str:
    """What stays on a tier, in words."""
    if not keep.limits:
        return "every step"
    parts = [f"the newest {keep.last}"] if keep.last is not None else []
    parts += [f"multiples of {keep.every_steps}"] if keep.every_steps is not None else []
    parts += [f"those of the last {format_seconds(keep.for_s)}"] if keep.for_s is not None else []
    parts += [f"the best {keep.best} by {keep.metric}"] if keep.best is not None else []
    return ", ".join(parts)


def _slot(view: AgentView, slot: SlotView) -> told.Slot:
    room, image = view.rooms.get(slot.slot), slot.image
    return told.Slot(
        slot=slot.slot,
        rank=slot.rank,
        state=slot.state if image else (room.page.state_name if room else "free"),
        image=str(image) if image else "",
        attempt=image.attempt if image else 0,
        step=image.step if image else -1,
        pins=slot.pins,
        flushes=dict(slot.flushes),
        capacity_bytes=room.capacity_bytes if room else 0,
    )


def _step(status: StepStatus) -> told.Step:
    return told.Step(
        step=status.checkpoint.step,
        attempt=status.checkpoint.attempt,
        memory=status.memory,
        tiers={n: t.state for n, t in status.tiers.items()},
        size_bytes=status.size_bytes,
        error=status.error["message"] if status.error else "",
    )
