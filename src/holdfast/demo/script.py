"""What will be trained, how often it is saved, and when disaster strikes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LEAST_STEPS = 24
"""Fewer leave no room for the plot."""


@dataclass(frozen=True, slots=True)
class Script:
    """The demo's plot, all of it a function of the number of steps."""

    steps: int = 100
    layers: int = 8
    width: int = 320

    @property
    def memory_every(self) -> int:
        return 2

    @property
    def disk_every(self) -> int:
        """A multiple of `memory_every`, so that what is being flushed is in memory too."""
        return max(4, self.steps // 20 * self.memory_every)

    @property
    def mid_step(self) -> int:
        """A rank is killed in the middle of this step: one that was to be saved, so that most is lost."""
        return round(self.steps * 0.27) // self.memory_every * self.memory_every

    @property
    def mid_flush(self) -> int:
        """All trainers are killed while the disk tier writes this step."""
        return -(-self.steps // (2 * self.disk_every)) * self.disk_every

    @property
    def node_lost(self) -> int:
        """Everything is killed in the middle of this step, and memory is wiped."""
        return round(self.steps * 0.78) // self.disk_every * self.disk_every + self.disk_every * 3 // 4

    @property
    def state_bytes(self) -> int:
        """About: weights and two moments of AdamW, four bytes each."""
        return 12 * (12 * self.layers + 1) * self.width**2

    @property
    def memory_bytes(self) -> int:
        """About what the arena takes: keep_last + 2 slots for each rank's share, and room for a load."""
        return 6 * self.state_bytes

    def arguments(self, *, events: Path, checkpoints: Path | None) -> list[str]:
        """The training script's command line."""
        arguments = [f"--steps={self.steps}", f"--layers={self.layers}", f"--width={self.width}", f"--events={events}"]
        if checkpoints is None:
            return arguments
        cadence = [f"--memory-every={self.memory_every}", f"--disk-every={self.disk_every}"]
        return [*arguments, *cadence, f"--checkpoints={checkpoints.as_uri()}"]
