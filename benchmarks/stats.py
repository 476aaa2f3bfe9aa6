"""Median of ratios with its bootstrap interval, and the verdict."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

_RESAMPLES = 10_000
_SEED = 20


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median and its 95 % bootstrap interval."""

    median: float
    low: float
    high: float
    samples: int

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def estimate(values: list[float]) -> Estimate:
    """Median of the values; the interval is the percentile bootstrap of the median, with a fixed seed."""
    data = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(_SEED)
    medians = np.median(data[rng.integers(0, len(data), (_RESAMPLES, len(data)))], axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return Estimate(float(np.median(data)), float(low), float(high), len(data))


def ratios(pairs: list[tuple[float, float]]) -> Estimate:
    """Of ours to floor, pair by pair, so that what slows the machine for a while slows both."""
    return estimate([ours / floor for floor, ours in pairs])


def verdict(found: Estimate, goal: float) -> str:
    """By the median alone, as the goal is stated; the interval says how sure that is."""
    return "reached" if found.median <= goal else "not reached"
