"""Loads: after the death of the one that saved, with a full page cache, and cold; and the first save after them."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.channel import VariantError
from benchmarks.files import end_agents
from benchmarks.table.bench import Cell, Table, Taken, reason, rotated
from benchmarks.table.group import Answers, Group
from benchmarks.table.roster import OURS, WaySpec

_THREADS = 2
_SEED, _OTHER_SEED = 1, 2  # a loader starts from other values, so that a load that loaded nothing shows
_KINDS = (("death_s", "as is"), ("warm_s", "kept"), ("cold_s", "dropped"))


class Loading:
    """A chain per way: each fresh process loads what the one before saved, saves anew, and is killed."""

    def __init__(self, table: Table, peers: Sequence[WaySpec]) -> None:
        self._table = table
        self._taken = Taken([OURS, *peers], [], {})
        self._expected: dict[str, list[int]] = {}

    def run(self) -> list[Cell]:
        """All rounds; only one job lives at a time."""
        for way in self._taken.ways:
            self._attempt(way, 0)
        for index in range(self._table.amount.pairs):
            self._taken.rounds.append({})
            for way in rotated(self._taken.alive(), index):
                self._attempt(way, index + 1)
        end_agents(self._table.places.memory)
        return self._taken.cells(f"{self._table.state}/load", 0)

    def _attempt(self, way: WaySpec, index: int) -> None:
        what = f"load {index} of {self._table.amount.pairs}" if index else "first save"
        self._table.say(f"{self._table.state}, {way.label}: {what}")
        threads = _THREADS if self._table.ranks == 1 else 1
        try:
            with self._table.start(way, threads=threads, seed=_OTHER_SEED if index else _SEED) as group:
                group.ready()
                if index:
                    self._taken.rounds[-1][way.key] = self._sample(way, group)
                else:
                    group.ask("prepare")
                    group.ask("first")
                    self._expected[way.key] = [a["fingerprint"] for a in group.ask("fingerprint")]
                group.kill()
        except VariantError as e:
            self._taken.failed[way.key] = reason(e, self._table.places)

    def _sample(self, way: WaySpec, group: Group) -> dict[str, float]:
        found = {}
        for key, cache in _KINDS:
            answers = group.ask("load", cache=cache)
            self._check(way, answers)
            found[key] = max(a["s"] for a in answers)
        group.ask("prepare")
        return found | {"first_s": max(a["stall_s"] for a in group.ask("first"))}

    def _check(self, way: WaySpec, answers: Answers) -> None:
        found = [a["fingerprint"] for a in answers]
        if found != self._expected[way.key]:
            raise VariantError(f"{way.label} loaded other values than were saved")
