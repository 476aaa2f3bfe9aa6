"""Places: tiers as configured, scopes, what a tier says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Scope(Enum):
    """Who sees a tier's bytes: one node, or every node of the job."""

    NODE = "node"
    SHARED = "shared"


class FailureDomain(Enum):
    """What dies together, from small to large."""

    PROCESS = "process"
    NODE = "node"
    RACK = "rack"
    ZONE = "zone"
    REGION = "region"


@dataclass(frozen=True, slots=True)
class TierRule:
    """One configured tier: where it is, how often it gets a step, what it keeps.

    `every_steps` is modulo the step number. `keep_last=None` keeps everything. The memory tier has the url
    `memory:`. `index` is the bit of the tier in a page's due mask.
    """

    index: int
    name: str
    url: str
    scope: Scope
    every_steps: int = 1
    keep_last: int | None = None
    keep_every_steps: int | None = None

    @property
    def is_memory(self) -> bool:
        return self.url.startswith("memory:")
