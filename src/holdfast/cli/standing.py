"""How agents stand, as lines and tables: one in full, several in a row each."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Sequence

from holdfast.agent.plots import bandwidth
from holdfast.cli.agents import NONE, Seen
from holdfast.cli.output import Column, Grid, Line, Part, counted
from holdfast.units import format_bytes, format_seconds
from holdfast.wire.spawn import LOG
from holdfast.wire.status import BAD, WARN, History, Slot, Status, Tier

STYLES = {BAD: "bold red", WARN: "bold yellow", "ok": "bold green"}
_LEVELS = "▁▂▃▄▅▆▇█"
_PLAIN_LEVELS = "_.-=*#"
_SPARKS = 16
_ERRORS_SHOWN = 3
_RECENT = 10


def parts_of(agents: Sequence[Seen]) -> Iterator[Part]:
    """What there is to see: an agent alone in full."""
    if len(agents) == 1:
        yield from in_full(agents[0])
    elif agents:
        yield _overview(agents)
        for seen in agents:
            yield from _problems(seen)
        yield Line("\nholdfast status URL shows one of them in full", "dim")
    else:
        yield Line("no agent of this user runs on this node, and none left memory behind")


# Several -------------------------------------------------------------------------------------------------------------
def _overview(agents: Sequence[Seen]) -> Grid:
    grid = Grid(
        [
            Column("RUN"),
            Column("STEP", True),
            Column("COMMITTED", True),
            Column("MEMORY", True),
            Column("STANDS", fold=True),
        ]
    )
    for seen in agents:
        grid.add(seen.run, *_row(seen), style=_style(seen))
    return grid


def _row(seen: Seen) -> list[str]:
    status = seen.status
    if status is None:
        size = format_bytes(seen.arena.size_bytes)
        return ["", "", size, "does not answer" if seen.state != NONE else "no agent"]
    steps = [t.step for t in status.trainers if t.alive]
    committed = max((t.newest_committed for t in status.tiers), default=-1)
    return [_number(max(steps, default=-1)), _number(committed), format_bytes(status.arena_bytes), status.headline]


def _style(seen: Seen) -> str:
    if seen.status is None:
        return "dim" if seen.state == NONE else "yellow"
    return {BAD: "red", WARN: "yellow"}.get(seen.status.level, "")


def _problems(seen: Seen) -> Iterator[Part]:
    """Under the overview: what to do, and what cannot be seen in a row."""
    if seen.state == NONE and seen.only_here:
        held = ", ".join(map(str, seen.only_here))
        yield Line(f"\n{seen.run}: memory alone holds {held}; a job loads it, `holdfast agent {seen.home}` flushes it")
    elif seen.error is not None:
        yield Line(f"\n{seen.run}: {seen.error.message}; look into {seen.arena.path / LOG}", "yellow")
    for problem in seen.status.problems if seen.status is not None else ():
        yield Line(f"\n{seen.run}: {problem.what}" + (f"\n  {problem.todo}" if problem.todo else ""))


# One -----------------------------------------------------------------------------------------------------------------
def in_full(seen: Seen) -> Iterator[Part]:
    """Verdict, tiers, ranks, slots, errors: what matters first stands where a small screen still shows it."""
    if seen.status is None:
        yield Line(f"{seen.run}: {'no agent' if seen.state == NONE else 'the agent does not answer'}", "bold yellow")
        yield Line(f"arena {seen.arena.path}, {format_bytes(seen.arena.size_bytes)}")
        yield from _problems(seen)
        return
    status, history = seen.status, seen.history or History()
    yield Line(f"{status.run}: {status.headline}", STYLES.get(status.level, "bold red"))
    yield Line(status.summary)
    for n, problem in enumerate(status.problems):
        # The first one is the headline.
        yield Line(f"{f'{problem.what}: ' if n else ''}{problem.todo}".removesuffix(": "), "yellow")
    yield Line()
    yield _tiers(status, history)
    yield from _errors(status, history.now_s)
    if status.trainers:
        yield Line()
        yield _ranks(status, history)
    if status.slots:
        yield Line()
        yield _slots(status)
    process = f"process {status.pid}, attempt {status.attempt or 'not claimed'}, {status.arena_size} of memory"
    yield Line(f"\n{process} in {status.arena}", "dim")


def _tiers(status: Status, history: History) -> Grid:
    columns = Column("TIER"), Column("STANDS"), Column("NEWEST", True), Column("FLUSHES"), Column("LAG", True)
    grid = Grid([*columns, Column("RATE", True), Column("DUE EVERY", fold=True), Column("TIMES")])
    for tier in status.tiers:
        flushes = [f for f in history.flushes.get(tier.name, []) if not f.error]
        words, style = _standing(tier)
        rate = f"{format_bytes(bandwidth(flushes[-_RECENT:]))}/s" if flushes else ""
        lag = format_seconds(tier.oldest_s) if tier.running or tier.waiting else ""
        due = tier.due.replace("every ", "")
        cells = [tier.name, words, _number(tier.newest_committed), _flushes(tier), lag, rate, due]
        grid.add(*cells, sparks([f.seconds for f in flushes]), style=style)
    return grid


def _standing(tier: Tier) -> tuple[str, str]:
    if tier.degraded:
        return "fails", "red"
    if tier.lagging:
        return "cannot keep up", "yellow"
    return ("flushing" if tier.running or tier.waiting else "up to date"), ""


def _flushes(tier: Tier) -> str:
    if not tier.running and not tier.waiting:
        return "none"
    parts = (f"{n} {what}" for n, what in ((tier.running, "run"), (tier.waiting, "wait")) if n)
    return ", ".join(parts)


def _ranks(status: Status, history: History) -> Grid:
    columns = Column("RANK", True), Column("STANDS"), Column("STEP", True), Column("SAVES", True)
    grid = Grid([*columns, Column("STALL", True), Column("MEDIAN", True), Column("WORST", True), Column("STALLS")])
    for t in status.trainers:
        stalls = [s.stall_s for s in history.stalls.get(t.rank, [])]
        state = "waits for a slot" if t.waiting_step >= 0 else "alive" if t.alive else "closed" if t.closed else "gone"
        last = format_seconds(t.stall_last_s) if t.saves else ""
        typical = [format_seconds(statistics.median(stalls)), format_seconds(max(stalls))] if stalls else ["", ""]
        cells = [str(t.rank), state, _number(t.step), str(t.saves), last, *typical, sparks(stalls)]
        grid.add(*cells, style="yellow" if t.waiting_step >= 0 else "" if t.alive else "dim")
    return grid


def _slots(status: Status) -> Grid:
    """A row per rank: which step is in which of its slots."""
    rows: dict[int | None, list[Slot]] = {}
    for slot in status.slots:
        rows.setdefault(slot.rank, []).append(slot)
    width = max(map(len, rows.values()))
    grid = Grid([Column("SLOTS"), *(Column("") for _ in range(width))], header=False)
    for rank in sorted(rows, key=lambda r: (r is None, r or 0)):
        cells = [_slot(s) for s in rows[rank]]
        grid.add("slots of none" if rank is None else f"slots of {rank}", *cells, *[""] * (width - len(cells)))
    return grid


def _slot(slot: Slot) -> str:
    if slot.step < 0:
        return f"[{slot.state}]"
    moving = [t for t, state in slot.flushes.items() if state in ("waiting", "running")]
    text = f"{slot.step}" if slot.state == "held" else f"{slot.step} {slot.state}"
    return f"[{text}{' -> ' + ', '.join(moving) if moving else ''}]"


def _errors(status: Status, now_s: float) -> Iterator[Part]:
    if not status.last_errors:
        return
    grid = Grid([Column("ERROR"), Column("TIER"), Column("WHAT", fold=True)])
    for error in status.last_errors[: -_ERRORS_SHOWN - 1 : -1]:
        ago = max(round(now_s - error.get("at_s", now_s)), 0)
        grid.add(f"{format_seconds(ago)} ago", error.get("tier") or "", str(error.get("message")))
    yield Line()
    yield grid
    more = status.errors - len(grid.rows)
    if more > 0:
        yield Line(f"and {counted(more, 'error')} before", "dim")


def sparks(values: Sequence[float]) -> str:
    """The newest values as a row of small bars, the largest of them full."""
    utf = "utf" in (sys.stdout.encoding or "").lower()
    levels, shown = _LEVELS if utf else _PLAIN_LEVELS, values[-_SPARKS:]
    most = max(shown, default=0.0)
    return "".join(levels[min(int(v / most * len(levels)), len(levels) - 1)] if most else levels[0] for v in shown)


def _number(step: int) -> str:
    return str(step) if step >= 0 else "-"
