"""Saves with training going on: ours and a few peers alive beside each other, each in turn."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Sequence

from benchmarks.channel import VariantError
from benchmarks.files import end_agents
from benchmarks.table.bench import Cell, Table, Taken, reason, rotated
from benchmarks.table.columns import figures
from benchmarks.table.group import Group
from benchmarks.table.memory import Account
from benchmarks.table.roster import OURS, WaySpec

OVER_COPY_STATE = "tensors"
"""Where the whole save is compared with one copy of the same tensors."""


class Saving:
    """Jobs that live for all rounds, and what each holds."""

    def __init__(self, table: Table, threads: int, peers: Sequence[WaySpec]) -> None:
        self._table, self._threads = table, threads
        self._taken = Taken([OURS, *peers], [], {})
        self._groups: dict[str, Group] = {}
        self._accounts = {way.key: Account() for way in self._taken.ways}

    def run(self) -> list[Cell]:
        """All rounds. A way that fails drops out; the others go on."""
        amount = self._table.amount
        with contextlib.ExitStack() as stack:
            self._start(stack)
            for index in range(amount.warm_up + amount.pairs):
                self._taken.rounds.append({})
                for way in rotated(self._taken.alive(), index):
                    self._say(way, f"save {index + 1} of {amount.warm_up + amount.pairs}")
                    self._attempt(way, "sample")
        end_agents(self._table.places.memory)
        return self._taken.cells(f"{self._table.state}/save/{self._threads}", amount.warm_up)

    def _start(self, stack: contextlib.ExitStack) -> None:
        for way in self._taken.ways:
            self._groups[way.key] = stack.enter_context(self._table.start(way, threads=self._threads, seed=1))
        for order in ("ready", "prepare"):
            for way in self._taken.alive():
                self._say(way, order)
                self._attempt(way, order)

    def _attempt(self, way: WaySpec, order: str) -> None:
        try:
            if order == "ready":
                self._groups[way.key].ready()
            elif order == "prepare":
                with self._accounts[way.key].active():
                    self._groups[way.key].ask("prepare")
            else:
                self._taken.rounds[-1][way.key] = self._sample(way)
        except VariantError as e:
            self._taken.failed[way.key] = reason(e, self._table.places)
            self._groups[way.key].kill()

    def _sample(self, way: WaySpec) -> dict[str, float]:
        group, account = self._groups[way.key], self._accounts[way.key]
        with account.active():
            answers = group.ask("sample", quiet=self._table.amount.quiet_steps)
        found = figures(answers, account.peak_bytes)
        if way is OURS and self._table.state == OVER_COPY_STATE:
            copy_s = statistics.median(a["s"] for a in group.ask("copy_floor"))
            found |= {"copy_s": copy_s, "over_copy_s": found["stall_s"] - copy_s}
        return found

    def _say(self, way: WaySpec, what: str) -> None:
        self._table.say(f"{self._table.state}, {self._threads} threads, {way.label}: {what}")
