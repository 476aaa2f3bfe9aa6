"""torchsnapshot's async_take."""

from __future__ import annotations

from torchsnapshot import Snapshot

from benchmarks.table.ways.way import Flight, Numbered


class Torchsnapshot(Numbered):
    """As it comes: its knobs are for memory budgets and for stores other than a local disk."""

    def save(self) -> Flight:
        pending = Snapshot.async_take(str(self.next_target()), self.job.state)

        def work() -> None:
            pending.wait()
            self.make_durable()

        return Flight(work)

    def load(self) -> None:
        Snapshot(str(self.target)).restore(self.job.state)
