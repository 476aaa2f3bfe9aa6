"""The first save of a fresh process after `prepare`, against the saves that follow it."""

from __future__ import annotations

from benchmarks.channel import Variant
from benchmarks.files import await_end_of_agents, remove
from benchmarks.plan import Bench
from benchmarks.record import Number

GOAL = 2.0
_STEADY_SAVES = 3


def first(bench: Bench) -> list[Number]:
    """A fresh run, arena, agent and trainer per sample."""
    pairs, raw = [], []
    for index in range(bench.plan.pairs):
        bench.say(f"first save: {index + 1}")
        sample = _sample(bench)
        pairs.append((sample["steady_s"], sample["first_s"]))
        raw.append(sample)
    return [Number("first", "stall: first save after prepare", "steady save", GOAL, pairs, {"samples": raw})]


def _sample(bench: Bench) -> dict[str, float]:
    with Variant("benchmarks.ours", bench.places.environment(), **bench.setup(threads=2), home=bench.home) as trainer:
        trainer.ready()
        attach_s = trainer.ask("attach")["s"]
        prepared = trainer.ask("prepare")
        found = trainer.ask("first", steady=_STEADY_SAVES)
        trainer.ask("discard")
    await_end_of_agents(bench.places.memory)
    remove(bench.places.disk / "run")
    return found | {"attach_s": attach_s, "prepare_s": prepared["s"], "faulted_s": prepared["faulted_s"]}
