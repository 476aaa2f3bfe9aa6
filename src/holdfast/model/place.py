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
class Keep:
    """What retention keeps: the newest `last`, multiples of `every_steps`, what is younger than `for_s`, the `best`.

    None: that rule keeps nothing of its own. `best` is by `metric`, whose least value (`mode` "max": greatest) is best.
    """

    last: int | None = None
    every_steps: int | None = None
    for_s: float | None = None
    best: int | None = None
    metric: str | None = None
    mode: str = "min"

    @property
    def limits(self) -> bool:
        """Whether anything is ever to go. Multiples of `every_steps` are kept besides; they alone are no limit."""
        return not (self.last is None and self.for_s is None and self.best is None)


@dataclass(frozen=True, slots=True)
class TierRule:
    """One configured tier: where it is, how often it gets a step, what it keeps.

    `every_steps` is modulo the step number (None: not by number), `every_s` counts from the last step the tier got.
    The memory tier has the url `memory:`. `index` is the bit of the tier in a page's due mask.
    """

    index: int
    name: str
    url: str
    scope: Scope
    every_steps: int | None = 1
    keep_last: int | None = None
    keep_every_steps: int | None = None
    every_s: float | None = None
    keep_for_s: float | None = None
    keep_best: int | None = None
    best_metric: str | None = None
    best_mode: str = "min"
    max_bytes_per_s: int | None = None
    """No more is flushed there by one node; None: no limit."""

    @property
    def is_memory(self) -> bool:
        return self.url.startswith("memory:")

    @property
    def keep(self) -> Keep:
        return Keep(
            last=self.keep_last,
            every_steps=self.keep_every_steps,
            for_s=self.keep_for_s,
            best=self.keep_best,
            metric=self.best_metric,
            mode=self.best_mode,
        )
