"""How much is measured, and what every case is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.files import Places

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """Counts of one run of the suite. `size` is a key of `state.SIZES`."""

    size: str
    pairs: int
    warm_up: int
    saves: int
    quiet_steps: int


FULL = Plan(size="full", pairs=15, warm_up=2, saves=100, quiet_steps=40)
QUICK = Plan(size="quick", pairs=3, warm_up=1, saves=20, quiet_steps=10)


@dataclass(frozen=True, slots=True)
class Bench:
    """What a case needs: the plan, the places, and a way to say how far it is."""

    plan: Plan
    places: Places
    say: Say

    @property
    def home(self) -> str:
        return str(self.places.disk / "run")

    def setup(self, threads: int) -> dict[str, Any]:
        return {"size": self.plan.size, "threads": threads}

    def floor_setup(self, threads: int) -> dict[str, Any]:
        return self.setup(threads) | {"disk": str(self.places.disk), "memory": str(self.places.memory)}


def in_turn(index: int, floor: Callable[[], Any], ours: Callable[[], Any]) -> tuple[Any, Any]:
    """One pair, floor first in every second one, so that neither always profits from coming after the other."""
    if index % 2:
        second = ours()
        return floor(), second
    return floor(), ours()
