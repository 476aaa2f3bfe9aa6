"""What happened in a run, as values; and the comparison of two runs, value by value."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import dataclass

Key = tuple[int, int]
"""(rank, step)"""


@dataclass(frozen=True, slots=True)
class Pass:
    """One execution of a step on a rank. `end` and `loss` are None where the process was killed in it."""

    rank: int
    step: int
    life: int
    begin: float
    end: float | None
    loss: str | None
    """As a hexadecimal float: equal text is equal bits."""

    @property
    def value(self) -> float:
        return float.fromhex(self.loss) if self.loss is not None else float("nan")


@dataclass(frozen=True, slots=True)
class Life:
    """The job between two starts: when its last rank had come how far, and what it had found."""

    number: int
    started: float
    ready: float
    attached: float
    loaded: float
    training: float
    step: int | None
    """The step it loaded; None: nothing was there."""
    source: str
    """The tier the bytes came from."""
    loaded_bytes: int

    @property
    def load_s(self) -> float:
        return self.loaded - self.attached


@dataclass(frozen=True, slots=True)
class Interruption:
    """One kill and what followed. `step` was in progress, `reached` the last one finished on all ranks."""

    scene: str
    t: float
    step: int
    reached: int
    unfinished: bool
    """Whether `step` was not yet committed on disk when the signal came (of interest in mid flush)."""
    life: Life
    caught_up: float | None
    """When the job had trained past `reached` again."""

    @property
    def lost_steps(self) -> int:
        """Finished steps that had to be trained again."""
        return self.reached - (-1 if self.life.step is None else self.life.step)

    @property
    def recovery_s(self) -> float:
        """From the signal to the first new step."""
        return self.life.training - self.t


@dataclass(frozen=True, slots=True)
class Save:
    """One save on one rank. `stall_s` is what training waited."""

    rank: int
    step: int
    t: float
    stall_s: float
    due: frozenset[str]


@dataclass(frozen=True, slots=True)
class Flush:
    """A checkpoint on its way to disk: from the last rank's save to the commit."""

    attempt: int
    step: int
    saved: float
    committed: float
    size_bytes: int
    due: bool
    """Whether the disk's cadence called for it; else it was promoted when the job ended."""

    @property
    def flush_s(self) -> float:
        return self.committed - self.saved


@dataclass(frozen=True, slots=True)
class RunFacts:
    """One run. All times are seconds after its launch."""

    passes: tuple[Pass, ...]
    lives: tuple[Life, ...]
    interruptions: tuple[Interruption, ...]
    saves: tuple[Save, ...]
    flushes: tuple[Flush, ...]
    weights: frozenset[str]
    """SHA-256 of the final weights, of each rank."""
    parameters: int
    ended: float

    def losses(self) -> dict[Key, set[str]]:
        """Every loss that was ever computed, by rank and step."""
        found: dict[Key, set[str]] = {}
        for p in self.passes:
            if p.loss is not None:
                found.setdefault((p.rank, p.step), set()).add(p.loss)
        return found

    def step_s(self) -> float:
        """Median time of a step, from its begin to the next one's: a save's stall counts."""
        passes = sorted((p for p in self.passes if p.rank == 0), key=lambda p: p.begin)
        gaps = [b.begin - a.begin for a, b in itertools.pairwise(passes) if a.life == b.life]
        return statistics.median(gaps) if gaps else float("nan")

    def curve(self) -> list[tuple[int, float]]:
        """(step, loss averaged over ranks), one point per step: of equal values, any."""
        values: dict[int, list[float]] = {}
        for (_, step), losses in sorted(self.losses().items()):
            values.setdefault(step, []).extend(float.fromhex(x) for x in losses)
        return [(step, statistics.fmean(v)) for step, v in sorted(values.items())]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The two runs compared, value by value."""

    compared: int
    different: tuple[Key, ...]
    missing: tuple[Key, ...]
    weights_equal: bool

    @property
    def equal(self) -> bool:
        return self.compared > 0 and not self.different and not self.missing and self.weights_equal


def compare(reference: RunFacts, run: RunFacts) -> Verdict:
    """Every loss of the run, also those of steps trained again, with the reference's at that rank and step."""
    expected, found = reference.losses(), run.losses()
    return Verdict(
        compared=sum(p.loss is not None for p in run.passes),
        different=tuple(sorted(k for k in found if found[k] != expected.get(k, set()))),
        missing=tuple(sorted(expected.keys() - found.keys())),
        weights_equal=len(reference.weights) == 1 and reference.weights == run.weights,
    )
