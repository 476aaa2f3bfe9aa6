"""What the world of the two machines is made of: tiers, slots, what stands on a tier, work under way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from holdfast.lifecycle import actions
from holdfast.model.identity import CheckpointId, ImageId
from holdfast.model.image import ImageLayout, ImageRecord
from holdfast.model.place import Scope, TierRule

LAYOUT = ImageLayout((), (), 4096, 4096, 0, 4096, 8192)
ERROR = {"kind": "tier", "message": "planted", "hint": "", "tier": None, "key": None, "step": None}
TIMED = (actions.Seal, actions.Verify, actions.Upload, actions.CheckWhole, actions.Commit, actions.Prune, actions.Sweep)


def tier(
    index: int, name: str, every_steps: int = 1, keep_last: int | None = None, scope: Scope = Scope.SHARED
) -> TierRule:
    url = "memory:" if name == "memory" else f"file:///{name}"
    return TierRule(index, name, url, Scope.NODE if name == "memory" else scope, every_steps, keep_last)


def rules_of(keep_memory: int = 2, **every_steps: int) -> tuple[TierRule, ...]:
    """A memory tier and others by name and cadence."""
    others = (tier(i, name, every, keep_last=3) for i, (name, every) in enumerate(every_steps.items(), 1))
    return (tier(0, "memory", 1, keep_memory), *others)


def record_of(image: Any) -> ImageRecord:
    return ImageRecord(image, 8192, hash(image) & 0xFFFF)


@dataclass
class Page:
    """A slot as its page shows it; `number` says for which of the rank's images it is."""

    rank: int | None
    number: int = 0
    state: str = "free"
    generation: int = 0
    image: ImageId | None = None
    relies_on: tuple[ImageId, ...] = ()
    due: frozenset[str] = frozenset()
    timed: frozenset[str] = frozenset()
    """Those of `due` that are due by time alone."""
    committed: set[str] = field(default_factory=set)
    world_size: int = 0
    pins: int = 0
    bad: bool = False
    filler_alive: bool = True


@dataclass
class Store:
    """What stands on a tier."""

    images: set[ImageId] = field(default_factory=set)
    manifests: dict[CheckpointId, frozenset[ImageId]] = field(default_factory=dict)
    tombstones: set[CheckpointId] = field(default_factory=set)


@dataclass(frozen=True)
class Task:
    """Work an action started: `owner` is a node, or None for the run machine."""

    owner: str | None
    action: Any
