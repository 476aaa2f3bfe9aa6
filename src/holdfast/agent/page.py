"""The agent's `/`: how a run stands on this node, for a person. One page, no scripts, nothing from elsewhere."""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Iterator
from typing import Any

from holdfast.agent.plots import arena_map, bandwidth, flush_plot, stall_plot
from holdfast.report.page import Card, Page, block, blocks, callout, cards, facts, listing, paragraph, pill, table
from holdfast.units import format_bytes, format_seconds
from holdfast.wire.spawn import SOCKET
from holdfast.wire.status import BAD, OK, WARN, History, Problem, Status, Step, Tier

REFRESH_S = 5
_STEPS_SHOWN = 20
_ERRORS_SHOWN = 20
_TONES = {OK: "calm", WARN: "warn", BAD: "bad"}
_RECENT = 10
_STATES = {"": "not due", "gone": "freed", "dropped": "given up or pruned"}
"""Words of a step's state for people, where the one for programs does not say it all."""


def render_page(status: Status, history: History) -> str:
    """The page: in words whether all is well, then numbers, tiers, slots, steps, what was, and errors."""
    page = Page(
        title=f"{status.run or 'a run'} on {socket.gethostname()}: Holdfast",
        verdict=status.headline,
        lead=_sentence(status.summary),
        tone=_TONES.get(status.level, "bad"),
        refresh_s=REFRESH_S,
    )
    page.add(*(callout(p.level, p.what, _sentence(p.todo)) for p in _worth_saying(status)))
    page.add(cards(_cards(status, history), small=True))
    page.section("Tiers", blocks(_tiers(status, history)))
    page.section("Memory", *_memory(status))
    page.section("Steps", *_steps(status))
    page.section("How long training waited in saves", _stalls(history))
    page.section(
        "How long flushes took", blocks(flush_plot(t.name, history.flushes.get(t.name, [])) for t in status.tiers)
    )
    page.section("Errors behind the training loop", *_errors(status, history.now_s))
    page.section("This agent", facts(_agent(status)), paragraph(_LOOK), listing(_commands(status)))
    return page.render()


_LOOK = "The page loads itself again every few seconds while it is served; a copy in a file stays as it is."


def _commands(status: Status) -> str:
    sock = f"{status.arena}/{SOCKET}"
    return (
        f"holdfast status {status.home}\n"
        f"ssh -N -L 8080:{sock} {socket.gethostname()}    # then open http://localhost:8080/\n"
        f"curl --unix-socket {sock} http://localhost/metrics"
    )


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}." if words and not words.endswith(".") else words


def _worth_saying(status: Status) -> list[Problem]:
    """The headline says the first problem; where it has no advice and is alone, nothing is left to say."""
    return [p for p in status.problems if p.todo or len(status.problems) > 1]


def _cards(status: Status, history: History) -> Iterator[Card]:
    steps = [t.step for t in status.trainers if t.alive and t.step >= 0]
    alive = sum(t.alive for t in status.trainers)
    note = f"{alive} of {status.world_size} ranks alive" if status.trainers else "no rank has attached"
    yield Card("training is at step", str(max(steps)) if steps else "-", note)
    whole = [s for s in status.steps if s.memory == "whole"]
    newest = max(whole, key=lambda s: (s.attempt, s.step), default=None)
    size = f"{format_bytes(newest.size_bytes)}, for a restart on this node" if newest else "nothing is whole"
    yield Card("newest in memory", str(newest.step) if newest else "-", size)
    # Not "durable": a tier of the node is lost with it.
    ahead = max(status.tiers, key=lambda t: t.newest_committed, default=None)
    if ahead is not None:
        there = ahead.newest_committed >= 0
        words = f"on {ahead.name}" + (_behind(ahead, max(steps)) if steps and there else "")
        yield Card("newest committed", str(ahead.newest_committed) if there else "-", words if there else "nothing yet")
    stalls = [s for per_rank in history.stalls.values() for s in per_rank]
    if stalls:
        values = [s.stall_s for s in stalls]
        words = f"median of {len(values)} saves; worst {format_seconds(max(values))}"
        yield Card("training waits for a save", format_seconds(statistics.median(values)), words)


def _behind(tier: Tier, at: int) -> str:
    behind = at - tier.newest_committed
    return f", {behind} step{'s' * (behind != 1)} behind training" if behind > 0 else ", level with training"


def _tiers(status: Status, history: History) -> Iterator[str]:
    steps = [t.step for t in status.trainers if t.alive and t.step >= 0]
    for tier in status.tiers:
        level, words = _tier_state(tier)
        rows = [
            ("newest step", _newest(tier, steps)),
            ("flushes", _flushes(tier)),
            ("bandwidth", _bandwidth(tier, history)),
            ("due", tier.due or "when asked"),
            ("keeps", tier.keeps),
            ("where", tier.url),
            *_last_error(tier, status, history.now_s),
        ]
        yield block(tier.name, facts(rows), mark=pill(words, level))


def _tier_state(tier: Tier) -> tuple[str, str]:
    if tier.degraded:
        return BAD, "fails"
    if tier.lagging:
        return WARN, "cannot keep up"
    if tier.waiting or tier.running:
        return OK, "flushing"
    return OK, "up to date"


def _newest(tier: Tier, steps: list[int]) -> str:
    if tier.newest_committed < 0:
        return "none yet"
    return f"{tier.newest_committed}" + (_behind(tier, max(steps)) if steps else "")


def _flushes(tier: Tier) -> str:
    if not tier.running and not tier.waiting:
        return "nothing waits"
    return f"{tier.running} under way, {tier.waiting} waiting, the oldest for {format_seconds(tier.oldest_s)}"


def _bandwidth(tier: Tier, history: History) -> str:
    recent = [f for f in history.flushes.get(tier.name, []) if not f.error][-_RECENT:]
    if not recent:
        return "nothing was flushed yet"
    limit = f", at most {format_bytes(tier.max_bytes_per_s)}/s" if tier.max_bytes_per_s else ""
    total = format_bytes(tier.flushed_bytes)
    return f"{format_bytes(bandwidth(recent))}/s per flush{limit}; {total} since the agent began"


def _last_error(tier: Tier, status: Status, now_s: float) -> Iterator[tuple[str, str]]:
    told = [e for e in status.last_errors if e.get("tier") == tier.name]
    if tier.degraded:
        yield "error", str(tier.degraded.get("message"))
    elif told:
        yield "last error", f"{_ago(now_s, told[-1].get('at_s'))}: {told[-1].get('message')}"


def _memory(status: Status) -> Iterator[str]:
    used = sum(bool(s.image) for s in status.slots)
    if not status.slots:
        yield paragraph("No slots yet: the first save, or prepare, makes them.")
        return
    yield paragraph(f"{used} of {len(status.slots)} slots hold an image; {status.arena_size} in all.")
    yield arena_map(status.slots)


def _steps(status: Status) -> Iterator[str]:
    if not status.steps:
        yield paragraph("None yet.")
        return
    found = sorted((s for s in status.steps if _worth_a_row(s)), key=lambda s: (s.attempt, s.step), reverse=True)
    shown, tiers = found[:_STEPS_SHOWN], [t.name for t in status.tiers]
    failed = any(s.error for s in shown)
    head = ["step", "attempt", "size", "memory", *tiers, *(["error"] if failed else [])]
    yield table(head, (_step_row(s, tiers, with_error=failed) for s in shown))
    yield paragraph(
        "The newest that are, or were to be, somewhere; those whose memory was freed and that no tier was to get are "
        f"left out. “holdfast ls {status.home}” lists every checkpoint there is."
    )


def _worth_a_row(step: Step) -> bool:
    return bool(step.memory != "gone" or step.tiers or step.error)


def _step_row(step: Step, tiers: list[str], *, with_error: bool) -> list[str]:
    states = [_STATES.get(step.tiers.get(t, ""), step.tiers.get(t, "")) for t in tiers]
    memory = _STATES.get(step.memory, step.memory)
    row = [str(step.step), str(step.attempt), format_bytes(step.size_bytes), memory, *states]
    return [*row, step.error] if with_error else row


def _stalls(history: History) -> str:
    if not history.stalls:
        return paragraph("No save was seen yet.")
    return blocks(stall_plot(rank, stalls) for rank, stalls in history.stalls.items())


def _errors(status: Status, now_s: float) -> Iterator[str]:
    if not status.last_errors:
        yield paragraph("None.")
        return
    alike: dict[tuple[object, object], list[dict[str, Any]]] = {}
    for error in reversed(status.last_errors):
        alike.setdefault((error.get("tier"), error.get("message")), []).append(error)
    for (tier, message), errors in list(alike.items())[:_ERRORS_SHOWN]:
        times = f", {len(errors)} times since {_ago(now_s, errors[-1].get('at_s'))}" if len(errors) > 1 else ""
        place = f", tier {tier}" if tier else ""
        what = f"{_ago(now_s, errors[0].get('at_s')).capitalize()}{times}{place}: {message}"
        yield callout("", what, _sentence(errors[0].get("hint") or ""))
    yield paragraph(f"{status.errors} in all; agent.log in {status.arena} has them.")


def _agent(status: Status) -> list[tuple[str, str]]:
    return [
        ("run", status.run),
        ("home", status.home),
        ("attempt", str(status.attempt) if status.attempt else "none claimed yet"),
        ("process", f"{status.pid} on {socket.gethostname()}"),
        ("arena", status.arena),
        ("looked at", time.strftime("%Y-%m-%d %H:%M:%S %Z")),
    ]


def _ago(now_s: float, at_s: object) -> str:
    if not isinstance(at_s, (int, float)) or not at_s:
        return "earlier"
    ago = max(now_s - at_s, 0.0)
    return f"{format_seconds(round(ago))} ago" if ago >= 1 else "just now"
