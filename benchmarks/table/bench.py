"""What the two parts of the table share: their places, how much is measured, and how a job is started."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.files import Places
from benchmarks.table.group import Group
from benchmarks.table.roster import OURS, WaySpec
from benchmarks.table.states import STATES


@dataclass(frozen=True, slots=True)
class Amount:
    """How much is measured: `pairs` that count, `warm_up` before them, `quiet_steps` before each save."""

    pairs: int
    warm_up: int
    quiet_steps: int
    quick: bool


FULL = Amount(pairs=15, warm_up=1, quiet_steps=8, quick=False)
QUICK = Amount(pairs=1, warm_up=1, quiet_steps=3, quick=True)


@dataclass(frozen=True, slots=True)
class Table:
    """One piece of the table in the making."""

    state: str
    amount: Amount
    places: Places
    say: Callable[[str], None]

    @property
    def ranks(self) -> int:
        return STATES[self.state].ranks

    def start(self, way: WaySpec, *, threads: int, seed: int) -> Group:
        """A job whose state has values of `seed`. What it saves lies in a directory of its own."""
        disk = self.places.disk / way.key
        disk.mkdir(exist_ok=True)
        setup: dict[str, Any] = {
            "state": self.state,
            "quick": self.amount.quick,
            "threads": threads,
            "seed": seed,
            "disk": str(disk),
            "way": way.program,
            "setting": way.setting,
        }
        return Group("benchmarks.table.program", self.places.environment(), self.ranks, **setup)


@dataclass(slots=True)
class Cell:
    """All samples of one peer in one setting, each with the one of ours from the same round.

    `ours_failed`, `failed`: why one of the two has no numbers. A round in which one is missing has None for it.
    """

    key: str
    rounds: list[tuple[dict[str, float] | None, dict[str, float] | None]]
    warm_up: list[tuple[dict[str, float] | None, dict[str, float] | None]]
    failed: str = ""
    ours_failed: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "failed": self.failed,
            "ours_failed": self.ours_failed,
            "rounds_ours_peer": self.rounds,
            "warm_up_ours_peer": self.warm_up,
        }


@dataclass(slots=True)
class Taken:
    """Samples by round and way, and who failed at what."""

    ways: Sequence[WaySpec]
    rounds: list[dict[str, dict[str, float]]]
    failed: dict[str, str]

    def alive(self) -> list[WaySpec]:
        return [way for way in self.ways if way.key not in self.failed]

    def cells(self, prefix: str, warm_up: int) -> list[Cell]:
        """One per peer."""
        return [self._cell(prefix, way.key, warm_up) for way in self.ways if way is not OURS]

    def _cell(self, prefix: str, key: str, warm_up: int) -> Cell:
        both = [(r.get(OURS.key), r.get(key)) for r in self.rounds]
        failed = {k: self.failed.get(k, "") for k in (key, OURS.key)}
        return Cell(f"{prefix}/{key}", both[warm_up:], both[:warm_up], failed[key], failed[OURS.key])


def rotated(ways: list[WaySpec], index: int) -> list[WaySpec]:
    """The same ways, another first in every round, so that none always comes after the same."""
    shift = index % len(ways) if ways else 0
    return ways[shift:] + ways[:shift]


def reason(error: Exception, places: Places) -> str:
    """The last line that says something: the error itself, without its traceback. Paths begin below `places`."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    hints = [line for line in lines if line.startswith("hint:")]
    last = next((line for line in reversed(lines) if line not in hints), "unknown")
    for place in (places.disk, places.memory):
        last = last.replace(f"{place}/", "")
    return last[:300]
