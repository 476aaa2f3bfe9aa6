"""Events that both machines hear: time, settings, ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from holdfast.model.identity import CheckpointId
from holdfast.model.place import TierRule

Error = Mapping[str, Any]
"""A `HoldfastError.to_dict()`."""


@dataclass(frozen=True, slots=True)
class TimerFired:
    """A timer that a `StartTimer` of this machine set has run out."""

    timer: str


@dataclass(frozen=True, slots=True)
class Reconfigured:
    """A new launch brought other settings; flushes to tiers that are gone are cancelled, timers that run go on."""

    rules: tuple[TierRule, ...]
    slot_wait_s: float
    idle_s: float


@dataclass(frozen=True, slots=True)
class RankAt:
    """A rank's page shows this (attempt, step). To the node machine, after `Staged` for all it staged before."""

    rank: int
    at: CheckpointId


@dataclass(frozen=True, slots=True)
class RankGaveUp:
    """A rank found no slot in time and went on without this step. To the node machine, which passes it on."""

    rank: int
    checkpoint: CheckpointId


@dataclass(frozen=True, slots=True)
class RankGone:
    """The process of a rank is gone; it will stage nothing more. To the node machine, which passes it on."""

    rank: int
