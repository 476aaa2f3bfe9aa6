"""Is all well? In words, and if not: what is wrong and what to do. Used by the page, the command line and programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from holdfast.units import format_seconds
from holdfast.wire.status import BAD, OK, WARN, Problem, Status, Tier, Trainer

_NEWS_S = 600.0
"""An error that is over counts against the run for so long."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The worst level, the one line a person reads first, the state of things, and every problem, worst first."""

    level: str
    headline: str
    summary: str
    problems: tuple[Problem, ...]


def judge(status: Status, now_s: float) -> Verdict:
    """A pure function of the status and the Unix time at which it was taken."""
    problems = sorted(_problems(status, now_s), key=lambda p: p.level != BAD)
    level = problems[0].level if problems else OK
    headline = problems[0].what if problems else _all_well(status)
    return Verdict(level, headline, _summary(status), tuple(problems))


def _problems(status: Status, now_s: float) -> Iterator[Problem]:
    if status.superseded_by:
        what = f"Attempt {status.superseded_by} took the run over: this agent commits nothing any more"
        yield Problem(BAD, what, "end this job, or the one that runs as that attempt")
    for tier in status.tiers:
        yield from _of_tier(tier)
    alive = [t for t in status.trainers if t.alive]
    for trainer in status.trainers:
        yield from _of_trainer(trainer, others_live=bool(alive))
    yield from _news(status, now_s)


def _of_tier(tier: Tier) -> Iterator[Problem]:
    if tier.degraded:
        message = tier.degraded.get("message", "no reason was given")
        todo = tier.degraded.get("hint") or f"look at {tier.url}; later steps are tried again by themselves"
        yield Problem(BAD, f"The tier {tier.name} fails: {message}", todo)
    if tier.lagging:
        late = f"{tier.waiting + tier.running} images wait or are under way, the oldest for {_age(tier.oldest_s)}"
        todo = f"raise every_steps of this tier (now due {tier.due or 'when asked'}), or use a quicker one"
        yield Problem(WARN, f"The tier {tier.name} cannot keep up: steps due there are skipped; {late}", todo)


def _of_trainer(trainer: Trainer, *, others_live: bool) -> Iterator[Problem]:
    if trainer.alive and trainer.waiting_step >= 0:
        what = f"Rank {trainer.rank} waits in a save for a slot (step {trainer.waiting_step})"
        yield Problem(WARN, what, "a tier holds the slots: the one that lags, or else wait a moment")
    if not trainer.alive and not trainer.closed and others_live:
        what = f"Rank {trainer.rank} (process {trainer.pid}) is gone without closing, other ranks live on"
        yield Problem(WARN, what, "its launcher should end the job and start it again; memory stays for that")


def _news(status: Status, now_s: float) -> Iterator[Problem]:
    """Errors of the last minutes that no failing tier tells of already."""
    failing = [t.degraded.get("message") for t in status.tiers if t.degraded]
    fresh = [e for e in status.last_errors if now_s - e.get("at_s", 0.0) < _NEWS_S and e.get("message") not in failing]
    if fresh:
        newest = fresh[-1]
        ago = _age(now_s - newest["at_s"])
        often = f"{_counted(len(fresh), 'error')} in the last {_NEWS_S / 60:.0f} minutes"
        what = f"{often}, the newest {ago} ago: {newest['message']}"
        yield Problem(WARN, what, newest.get("hint") or "")


def _all_well(status: Status) -> str:
    if any(t.alive for t in status.trainers):
        return "All is well"
    if any(s.image for s in status.slots):
        return "Nobody trains; memory stays for a restart"
    return "Nobody trains, and memory is empty"


def _summary(status: Status) -> str:
    alive = [t for t in status.trainers if t.alive]
    parts = []
    at = max((t.step for t in alive), default=-1)
    if alive:
        where = f"at step {at}" if at >= 0 else "without a save so far"
        parts.append(f"{_counted(len(alive), 'rank')} of {status.world_size} {_train(len(alive))} {where}")
    whole = max(((s.attempt, s.step) for s in status.steps if s.memory == "whole"), default=None)
    if whole is not None:
        parts.append(f"memory holds step {whole[1]}")
    parts += [f"{tier.name} {_newest(tier, at)}" for tier in status.tiers]
    return "; ".join(parts)


def _newest(tier: Tier, at: int) -> str:
    if tier.newest_committed < 0:
        return "has no step yet"
    behind = at - tier.newest_committed
    return f"has step {tier.newest_committed}" + (f", {_counted(behind, 'step')} behind" if behind > 0 else "")


def _train(n: int) -> str:
    return "trains" if n == 1 else "train"


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _age(s: float) -> str:
    return format_seconds(round(s) if s >= 10 else s)
