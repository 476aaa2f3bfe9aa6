"""What status, metrics and page are made from: a look at the agent's parts, without the agent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdfast.config import Settings
from holdfast.lifecycle.slots import SlotView, TierView
from holdfast.lifecycle.steps import StepStatus
from holdfast.model.identity import CheckpointId
from holdfast.wire.pages import SlotPage
from holdfast.wire.status import Trainer


@dataclass(frozen=True, slots=True)
class SlotRoom:
    """A slot's file as the arena has it: its page, its room, and how long its image has been in it."""

    page: SlotPage
    capacity_bytes: int
    age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Shelved:
    """What the shelf knows of a tier: bytes and seconds of all flushes, its limit, files that wait for new images."""

    flushed_bytes: int = 0
    flush_s: float = 0.0
    max_bytes_per_s: float | None = None
    recyclable_files: int = 0
    recyclable_bytes: int = 0
    repaired: int = 0


@dataclass(frozen=True, slots=True)
class AgentView:
    """One look. Threads: made and used on the agent's event loop; `rooms` hold pages that live on.

    `committed` is the newest checkpoint on each tier that has one.
    """

    settings: Settings
    arena: Path
    now_s: float
    pid: int = 0
    attempt: int = 0
    superseded_by: int = 0
    launch: str = ""
    world_size: int = 0
    arena_bytes: int = 0
    error_count: int = 0
    errors: Sequence[tuple[float, Mapping[str, Any]]] = ()
    trainers: Sequence[Trainer] = ()
    tiers: Sequence[TierView] = ()
    slots: Sequence[SlotView] = ()
    steps: Sequence[StepStatus] = ()
    rooms: Mapping[int, SlotRoom] = field(default_factory=dict)
    shelved: Mapping[str, Shelved] = field(default_factory=dict)
    committed: Mapping[str, CheckpointId] = field(default_factory=dict)

    def newest_committed(self, tier: str) -> int:
        """The newest step committed on a tier, as far as the agent knows; -1: none."""
        return self.committed[tier].step if tier in self.committed else -1

    def oldest_s(self, tier: str) -> float:
        """How long the oldest image that still has to get to the tier has been in memory."""
        late = (v.slot for v in self.slots if v.flushes.get(tier) in ("waiting", "running"))
        return max((self.rooms[n].age_s for n in late if n in self.rooms), default=0.0)
