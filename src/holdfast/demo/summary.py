"""The numbers people and programs are shown, made once from the facts of both runs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from holdfast.demo.facts import Flush, Interruption, RunFacts, Verdict, compare
from holdfast.demo.script import Script
from holdfast.demo.story import MID_FLUSH, MID_STEP, NODE_LOST
from holdfast.units import format_bytes, format_seconds

EXPECTED_SOURCE = {MID_STEP: "memory", MID_FLUSH: "memory", NODE_LOST: "disk"}
SCENES = {
    MID_STEP: "SIGKILL to rank 1 between forward and backward",
    MID_FLUSH: "SIGKILL to both ranks while the disk tier was writing",
    NODE_LOST: "SIGKILL to launcher, ranks and agent, and the memory wiped",
}
HEAD = ("killed", "step", "steps lost", "came back from", "loaded in", "training again after", "level again after")


@dataclass(frozen=True, slots=True)
class Summary:
    """Both runs and what follows from them."""

    script: Script
    reference: RunFacts
    run: RunFacts

    @property
    def verdict(self) -> Verdict:
        return compare(self.reference, self.run)

    @property
    def surprises(self) -> list[str]:
        """What did not happen as the story says, in words; the losses may be equal all the same."""
        out = []
        seen = [cut.scene for cut in self.run.interruptions]
        if seen != [scene for scene in EXPECTED_SOURCE if scene in seen] or len(seen) != len(EXPECTED_SOURCE):
            out.append(f"the job was to be killed {len(EXPECTED_SOURCE)} times and came back from: {seen}")
        if len(self.run.lives) != len(seen) + 1:
            out.append(f"the job was killed {len(seen)} times and started {len(self.run.lives)} times")
        for cut in self.run.interruptions:
            if cut.life.source != EXPECTED_SOURCE[cut.scene]:
                out.append(f"{cut.scene}: came back from {cut.life.source or 'nothing'}")
            if cut.scene == MID_FLUSH and not cut.unfinished:
                out.append(f"{cut.scene}: step {cut.step} was on disk before the signal came")
        return out

    @property
    def good(self) -> bool:
        return self.verdict.equal and not self.surprises

    def headline(self) -> str:
        if not self.verdict.equal:
            return "The losses differ."
        times = {1: "once", 2: "twice", 3: "three times"}.get(len(self.run.interruptions), "often")
        return f"Killed {times}. Every loss is equal, to the last bit."

    def stalls_s(self) -> list[float]:
        return [save.stall_s for save in self.run.saves]

    def due_flushes(self) -> list[Flush]:
        """Those that the cadence called for; others were promoted when a job ended."""
        return [f for f in self.run.flushes if f.due]

    def state_bytes(self) -> int:
        return max((f.size_bytes for f in self.run.flushes), default=0)

    def rows(self) -> list[Sequence[str]]:
        """One row of HEAD for each kill."""
        return [_row(cut) for cut in self.run.interruptions]

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints; docs/demo.md lists the keys."""
        verdict = self.verdict
        return {
            "equal": verdict.equal,
            "as_told": not self.surprises,
            "surprises": self.surprises,
            "steps": self.script.steps,
            "compared": verdict.compared,
            "different": [{"rank": rank, "step": step} for rank, step in verdict.different + verdict.missing],
            "weights_equal": verdict.weights_equal,
            "parameters": self.run.parameters,
            "state_bytes": self.state_bytes(),
            "step_s": {"without_holdfast": self.reference.step_s(), "with_holdfast": self.run.step_s()},
            "stall_s": _spread(self.stalls_s()),
            "flush_s": _spread([f.flush_s for f in self.due_flushes()]),
            "kills": [_kill(cut) for cut in self.run.interruptions],
            "elapsed_s": {"reference": self.reference.ended, "run": self.run.ended},
        }


def _row(cut: Interruption) -> Sequence[str]:
    life = cut.life
    return (
        cut.scene,
        str(cut.step),
        str(cut.lost_steps),
        f"{life.source or 'nothing'}, step {life.step}",
        f"{format_seconds(life.load_s)} ({format_bytes(life.loaded_bytes)})",
        format_seconds(cut.recovery_s),
        "-" if cut.caught_up is None else format_seconds(cut.caught_up - cut.t),
    )


def _kill(cut: Interruption) -> dict[str, Any]:
    return {
        "scene": cut.scene,
        "step": cut.step,
        "reached_step": cut.reached,
        "loaded_step": cut.life.step,
        "lost_steps": cut.lost_steps,
        "source": cut.life.source,
        "loaded_bytes": cut.life.loaded_bytes,
        "load_s": cut.life.load_s,
        "recovery_s": cut.recovery_s,
        "caught_up_s": None if cut.caught_up is None else cut.caught_up - cut.t,
        "unfinished_on_disk": cut.unfinished,
    }


def _spread(values: Sequence[float]) -> dict[str, float | int | None]:
    if not values:
        return {"count": 0, "median": None, "max": None}
    return {"count": len(values), "median": statistics.median(values), "max": max(values)}
