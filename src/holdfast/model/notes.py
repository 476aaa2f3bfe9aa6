"""What a save says of itself besides its bytes: when it was made, and how well the run did."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Notes:
    """Written by rank 0 into its image; retention decides by it.

    `saved_at_s` is the wall clock of rank 0 then, in whole seconds since 1970: clocks jump, so it is good for a guess
    only. `metrics` are (name, value), sorted by name.
    """

    saved_at_s: int
    metrics: tuple[tuple[str, float], ...] = ()

    def metric(self, name: str) -> float | None:
        return dict(self.metrics).get(name)
