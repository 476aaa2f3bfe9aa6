"""Stall and durable, in turn with their floors."""

from __future__ import annotations

from typing import Any

from benchmarks.channel import Variant
from benchmarks.plan import Bench, in_turn
from benchmarks.record import Number

STALL_GOAL, DURABLE_GOAL = 1.2, 1.25
Goals = tuple[float | None, float | None]
_TAKEN = ("copy_s", "write_s", "stall_s", "durable_s")


def saving(bench: Bench) -> list[Number]:
    """Stall and durable from the same saves. Durable is judged with torch's default threads, two here."""
    return [*_at(bench, 1, (STALL_GOAL, None)), *_at(bench, 2, (STALL_GOAL, DURABLE_GOAL))]


def _at(bench: Bench, threads: int, goals: Goals) -> list[Number]:
    env = bench.places.environment()
    with (
        Variant("benchmarks.floors", env, **bench.floor_setup(threads)) as floor,
        Variant("benchmarks.ours", env, **bench.setup(threads), home=bench.home) as saver,
    ):
        floor.ready()
        saver.ready()
        saver.ask("attach")
        saver.ask("prepare")
        taken = _pairs(bench, floor, saver, f"ours, {threads} threads")
        saver.ask("discard")
    return _numbers(taken, f"holdfast, torch threads = {threads}", f"ours_{threads}", goals)


def _pairs(bench: Bench, floor: Variant, saver: Variant, name: str) -> dict[str, Any]:
    """Warm-up samples are kept apart: the first of them is the saver's first save ever."""
    taken: dict[str, Any] = {"warm_up": [], "pairs": []}
    for index in range(bench.plan.warm_up + bench.plan.pairs):
        bench.say(f"{name}: {index + 1}")
        below, above = in_turn(index, lambda: _floors(floor), lambda: saver.ask("save"))
        taken["warm_up" if index < bench.plan.warm_up else "pairs"].append(below | above)
    return taken


def _floors(floor: Variant) -> dict[str, float]:
    return {"copy_s": floor.ask("copy")["s"], "write_s": floor.ask("write")["s"]}


def _numbers(taken: dict[str, Any], what: str, key: str, goals: Goals) -> list[Number]:
    raw = {"warm_up": [{k: sample[k] for k in _TAKEN} for sample in taken["warm_up"]]}
    stall = [(s["copy_s"], s["stall_s"]) for s in taken["pairs"]]
    durable = [(s["write_s"], s["durable_s"]) for s in taken["pairs"]]
    of_stall, of_durable = goals
    return [
        Number(f"stall_{key}", f"stall: {what}", "copy", of_stall, stall, raw),
        Number(f"durable_{key}", f"durable: {what}", "write", of_durable, durable),
    ]
