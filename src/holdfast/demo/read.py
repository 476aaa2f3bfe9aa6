"""From event logs to facts. A pure function of the events: the same logs give the same facts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from holdfast.demo.events import Event
from holdfast.demo.facts import Flush, Interruption, Life, Pass, RunFacts, Save


def read(events: Iterable[Event]) -> RunFacts:
    """The facts of one run's events, in any order."""
    events = sorted(events, key=lambda e: e["t"])
    zero = events[0]["t"]
    events = [{**e, "t": e["t"] - zero} for e in events]
    numbered = _with_lives(events)
    lives = _lives(numbered)
    passes = _passes(numbered)
    saves = tuple(_save(e) for e in events if e["what"] == "save")
    return RunFacts(
        passes=passes,
        lives=lives,
        interruptions=_interruptions(events, lives, passes),
        saves=saves,
        flushes=_flushes(events, saves),
        weights=frozenset(e["sha256"] for e in events if e["what"] == "trained"),
        parameters=next((e["parameters"] for e in events if e["what"] == "ready"), 0),
        ended=events[-1]["t"],
    )


def _save(event: Event) -> Save:
    return Save(event["rank"], event["step"], event["t"], event["stall_s"], frozenset(event["due"]))


def _with_lives(events: Sequence[Event]) -> list[Event]:
    """Events of ranks, each with the number of its life: a rank begins a new one with `ready`."""
    lives: dict[int, int] = {}
    out = []
    for event in events:
        if "rank" not in event:
            continue
        if event["what"] == "ready":
            lives[event["rank"]] = lives.get(event["rank"], -1) + 1
        out.append({**event, "life": lives[event["rank"]]})
    return out


def _lives(events: Sequence[Event]) -> tuple[Life, ...]:
    """Only lives in which every rank came to train."""
    out = []
    for number in sorted({e["life"] for e in events}):
        mine = [e for e in events if e["life"] == number]
        loaded = [e for e in mine if e["what"] == "loaded"]
        if not loaded:
            continue
        began = {e["rank"]: e["t"] for e in reversed(mine) if e["what"] == "begin"}
        ready = [e for e in mine if e["what"] == "ready"]
        out.append(
            Life(
                number=number,
                started=min(e["t"] - e["age_s"] for e in ready),
                ready=max(e["t"] for e in ready),
                attached=max(e["t"] for e in mine if e["what"] == "attached"),
                loaded=max(e["t"] for e in loaded),
                training=max(began.values(), default=max(e["t"] for e in loaded)),
                step=loaded[0]["step"],
                source=", ".join(sorted({s for e in loaded for s in e.get("sources", [])})),
                loaded_bytes=max(e.get("bytes", 0) for e in loaded),
            )
        )
    return tuple(out)


def _passes(events: Sequence[Event]) -> tuple[Pass, ...]:
    ends = {(e["rank"], e["life"], e["step"]): e for e in events if e["what"] == "step"}
    out = []
    for e in events:
        if e["what"] == "begin":
            end = ends.get((e["rank"], e["life"], e["step"]), {})
            out.append(Pass(e["rank"], e["step"], e["life"], e["t"], end.get("t"), end.get("loss")))
    return tuple(out)


def _interruptions(events: Sequence[Event], lives: Sequence[Life], passes: Sequence[Pass]) -> tuple[Interruption, ...]:
    out = []
    for e in events:
        after = next((life for life in lives if life.ready > e["t"]), None)
        if e["what"] != "kill" or after is None:
            continue
        reached = _reached(passes, e["t"])
        again = [p.end for p in passes if p.life == after.number and p.step == reached + 1 and p.end is not None]
        out.append(
            Interruption(e["scene"], e["t"], e["step"], reached, e["unfinished"], after, max(again) if again else None)
        )
    return tuple(out)


def _reached(passes: Sequence[Pass], t: float) -> int:
    """The last step that every rank of the life that lived at `t` had finished; -1 for none."""
    begun = [p for p in passes if p.begin <= t]
    life = max((p.life for p in begun), default=0)
    last = {p.rank: -1 for p in begun}
    for p in begun:
        if p.life == life and p.end is not None and p.end <= t:
            last[p.rank] = max(last[p.rank], p.step)
    return min(last.values(), default=-1)


def _flushes(events: Sequence[Event], saves: Sequence[Save]) -> tuple[Flush, ...]:
    """A commit belongs to the last save of its step before it."""
    out = []
    for e in events:
        if e["what"] == "committed":
            before = [s for s in saves if s.step == e["step"] and s.t < e["t"]]
            saved = max((s.t for s in before), default=e["t"])
            due = any("disk" in s.due for s in before)
            out.append(Flush(e["attempt"], e["step"], saved, e["t"], e["bytes"], due))
    return tuple(out)
