"""The worst training step while a save is flushed, against the median step."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.channel import Variant
from benchmarks.plan import Bench
from benchmarks.record import Number

GOAL = 1.5


def worst_step(bench: Bench) -> list[Number]:
    """With one torch thread (a core is left to the agent) and with two."""
    return [number for threads in (1, 2) for number in _at(bench, threads)]


def _at(bench: Bench, threads: int) -> list[Number]:
    with Variant("benchmarks.training", bench.places.environment(), **bench.setup(threads), home=bench.home) as trainer:
        trainer.ready()
        trainer.ask("attach")
        trainer.ask("prepare")
        samples = []
        for index in range(bench.plan.warm_up + bench.plan.pairs):
            bench.say(f"worst step, {threads} threads: {index + 1}")
            quiet = trainer.ask("quiet", steps=bench.plan.quiet_steps)["steps_s"]
            samples.append({"quiet_s": quiet, **trainer.ask("flushing")})
        trainer.ask("discard")
    return _numbers(samples[bench.plan.warm_up :], samples, threads)


def _numbers(measured: list[dict[str, Any]], every: list[dict[str, Any]], threads: int) -> list[Number]:
    """The quiet steps' own worst stands beside it: a busy machine has slow steps without any save."""
    median = [statistics.median(s["quiet_s"]) for s in measured]
    kinds = (
        ("worst_step", "worst step while flushing", GOAL, [max(s["steps_s"]) for s in measured]),
        ("worst_quiet_step", "worst quiet step", None, [max(s["quiet_s"]) for s in measured]),
        ("mean_step", "mean step while flushing", None, [statistics.fmean(s["steps_s"]) for s in measured]),
    )
    raw = {"samples": every}
    return [
        Number(
            f"{key}_{threads}",
            f"{what}, torch threads = {threads}",
            "median step",
            goal,
            list(zip(median, found, strict=True)),
            raw if goal else {},
        )
        for key, what, goal, found in kinds
    ]
