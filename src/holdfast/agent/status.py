"""What the agent tells of itself: handles' answers, the list of steps, and the whole status."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from holdfast.agent.arena import Slot
from holdfast.lifecycle.steps import StepStatus
from holdfast.model.identity import CheckpointId
from holdfast.units import format_bytes
from holdfast.wire.messages import SaveStatus, StepInfo, TierState
from holdfast.wire.pages import SlotState

if TYPE_CHECKING:
    from holdfast.agent.agent import Agent


async def save_status(agent: Agent, checkpoint: CheckpointId) -> SaveStatus:
    """What became of a step: from the run machine, else from the slots not yet told, else from what is committed."""
    known = agent.executor.run.status(checkpoint)
    if known is not None:
        return _as_message(known)
    if any(s.page.attempt == checkpoint.attempt and s.page.step == checkpoint.step for s in _occupied(agent)):
        # Staged since the last poll.
        return SaveStatus("staged", {})
    view = await agent.in_thread(agent.shelf.view)
    tiers = {t: TierState("committed") for t in view.committed.get(checkpoint, [])}
    return SaveStatus("gone" if tiers else "lost", tiers)


def _occupied(agent: Agent) -> Iterator[Slot]:
    return agent.arena.find(SlotState.FILLING, SlotState.STAGED, SlotState.HELD)


def _as_message(status: StepStatus) -> SaveStatus:
    tiers = {n: TierState(t.state, dict(t.error) if t.error else None) for n, t in status.tiers.items()}
    return SaveStatus(status.memory, tiers, dict(status.error) if status.error else None)


async def step_infos(agent: Agent) -> list[StepInfo]:
    """Every step that exists anywhere: whole in memory here, or committed on a tier; oldest first."""
    view = await agent.in_thread(agent.shelf.view)
    places: dict[CheckpointId, list[str]] = {c: list(t) for c, t in view.committed.items()}
    for checkpoint in agent.executor.whole():
        if checkpoint not in view.tombstoned:
            places.setdefault(checkpoint, []).insert(0, "memory")
    sizes = _sizes(agent)
    return [
        StepInfo(
            step=c.step,
            attempt=c.attempt,
            tiers=tiers,
            size_bytes=sizes.get(c, view.sizes.get(c, 0)),
            abandoned=bool(view.attempts) and c not in view.lineage,
            problem="; ".join(view.damaged.get(c, [])),
        )
        for c, tiers in sorted(places.items())
    ]


def _sizes(agent: Agent) -> dict[CheckpointId, int]:
    sizes: dict[CheckpointId, int] = {}
    for record in agent.executor.held().values():
        sizes[record.id.checkpoint] = sizes.get(record.id.checkpoint, 0) + record.size_bytes
    return sizes


def status_of(agent: Agent) -> dict[str, Any]:
    """Everything, as plain JSON values. Keys are listed in docs/reference.md."""
    settings = agent.settings
    return {
        "run": settings.run,
        "home": settings.home,
        "arena": str(agent.root),
        "pid": os.getpid(),
        "attempt": agent.run_page.attempt,
        "superseded_by": agent.run_page.superseded_by,
        "launch": agent.launches.launch,
        "arena_bytes": agent.arena.used_bytes,
        "arena_size": format_bytes(agent.arena.used_bytes),
        "errors": agent.run_page.errors,
        "trainers": [_trainer(t) for _, t in sorted(agent.launches.trainers.items())],
        "tiers": [_tier(agent, v) for v in agent.executor.node.tiers()],
        "slots": [_slot(agent, v) for v in agent.executor.node.slots()],
        "steps": [_step(s) for s in agent.executor.run.steps()],
        "last_errors": agent.last_errors(),
    }


def _trainer(trainer: Any) -> dict[str, Any]:
    page = trainer.page
    return {
        "rank": trainer.rank,
        "pid": page.pid,
        "alive": trainer.alive,
        "attached": trainer.attached,
        "step": page.current_step,
        "saves": page.saves,
        "stall_s": page.stall_ns / 1e9,
        "stall_last_s": page.stall_last_ns / 1e9,
    }


def _tier(agent: Agent, view: Any) -> dict[str, Any]:
    n_bytes, seconds = agent.shelf.flushed.get(view.name, (0, 0.0))
    files, room_bytes = agent.shelf.recyclable(view.name)
    return {
        "name": view.name,
        "url": next((r.url for r in agent.settings.tiers if r.name == view.name), ""),
        "max_bytes_per_s": agent.shelf.limit_of(view.name),
        "lagging": view.lagging,
        "degraded": dict(view.degraded) if view.degraded else None,
        "waiting": view.waiting,
        "running": view.running,
        "flushed_bytes": n_bytes,
        "flush_bytes_per_s": n_bytes / seconds if seconds else 0.0,
        "newest_committed": agent.newest_committed(view.name),
        "recyclable_files": files,
        "recyclable_bytes": room_bytes,
    }


def _slot(agent: Agent, view: Any) -> dict[str, Any]:
    slot = agent.arena.slots.get(view.slot)
    return {
        "slot": view.slot,
        "rank": view.rank,
        "state": view.state if view.image else (slot.page.state_name if slot else "free"),
        "image": str(view.image) if view.image else "",
        "pins": view.pins,
        "flushes": dict(view.flushes),
        "capacity_bytes": slot.capacity_bytes if slot else 0,
    }


def _step(status: StepStatus) -> dict[str, Any]:
    return {
        "step": status.checkpoint.step,
        "attempt": status.checkpoint.attempt,
        "memory": status.memory,
        "tiers": {n: t.state for n, t in status.tiers.items()},
        "size_bytes": status.size_bytes,
        "error": status.error["message"] if status.error else "",
    }
