"""The agent's drawings: how long training waited in saves, how long flushes took, which step is in which slot."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from holdfast.report.bars import Bar, bar_chart
from holdfast.report.page import block, figure
from holdfast.report.svg import tag
from holdfast.units import format_bytes, format_seconds
from holdfast.wire.status import Flush, Slot, Stall

_BARS = 60
_FLUSH_MARKS = {"waiting": "waits for", "running": "on its way to", "uploaded": "on", "committed": "on"}


def stall_plot(rank: int, stalls: Sequence[Stall]) -> str:
    """One bar per save of a rank."""
    shown = stalls[-_BARS:]
    unit, per_s = _unit(max((s.stall_s for s in shown), default=0.0))
    bars = [Bar(f"step {s.step}", s.stall_s * per_s, "memory", _stall_words(s)) for s in shown]
    values = [s.stall_s for s in shown]
    words = (
        f"median {format_seconds(statistics.median(values))}, worst {format_seconds(max(values))} "
        f"of the last {len(values)}"
        if values
        else "no save yet"
    )
    chart = bar_chart(f"Stalls of rank {rank}", bars, unit=unit, room_for=20)
    return block(f"rank {rank}", figure(chart, words) if bars else tag("p", escape(words)))


def _stall_words(stall: Stall) -> str:
    many = f", the mean of {stall.saves} saves" if stall.saves > 1 else ""
    return f"step {stall.step}: training waited {format_seconds(stall.stall_s)}{many}"


def flush_plot(tier: str, flushes: Sequence[Flush]) -> str:
    """One bar per step flushed to a tier: from the first byte of its images here to the last."""
    steps = by_step(flushes)[-_BARS:]
    unit, per_s = _unit(max((s.seconds for s in steps), default=0.0))
    bars = [Bar(f"step {s.step}", s.seconds * per_s, "kill" if s.error else "disk", _flush_words(s)) for s in steps]
    good = [s for s in steps if not s.error]
    words = "none yet"
    if good:
        words = (
            f"median {format_seconds(statistics.median(s.seconds for s in good))} for "
            f"{format_bytes(good[-1].size_bytes)}, {format_bytes(bandwidth(good))}/s"
        )
    if len(good) < len(steps):
        words += f"; {len(steps) - len(good)} failed (red)"
    chart = bar_chart(f"Flushes to {tier}", bars, unit=unit, room_for=20)
    return block(tier, figure(chart, words) if bars else tag("p", escape(words)))


def _flush_words(flush: Flush) -> str:
    if flush.error:
        return f"step {flush.step} failed after {format_seconds(flush.seconds)}: {flush.error}"
    return f"step {flush.step}: {format_bytes(flush.size_bytes)} in {format_seconds(flush.seconds)}"


def by_step(flushes: Sequence[Flush]) -> list[Flush]:
    """Flushes of one step's images as one, from the beginning of the first to the end of the last; one failed: all."""
    found: dict[tuple[int, int], list[Flush]] = {}
    for flush in flushes:
        found.setdefault((flush.attempt, flush.step), []).append(flush)
    return [_together(images) for images in found.values()]


def _together(images: Sequence[Flush]) -> Flush:
    first, last = images[0], max(f.at_s for f in images)
    return Flush(
        at_s=last,
        attempt=first.attempt,
        step=first.step,
        rank=-1,
        image=-1,
        size_bytes=sum(f.size_bytes for f in images),
        seconds=last - min(f.at_s - f.seconds for f in images),
        error=next((f.error for f in images if f.error), ""),
    )


def bandwidth(flushes: Sequence[Flush]) -> float:
    """Bytes per second of what is given, all together; 0 where nothing is."""
    seconds = sum(f.seconds for f in flushes)
    return sum(f.size_bytes for f in flushes) / seconds if seconds else 0.0


def _unit(largest_s: float) -> tuple[str, float]:
    return ("ms", 1e3) if largest_s < 1 else ("s", 1.0)


def arena_map(slots: Sequence[Slot]) -> str:
    """A row of boxes per rank: which step is in which slot, and how far it has come on the tiers."""
    rows: dict[int | None, list[Slot]] = {}
    for slot in slots:
        rows.setdefault(slot.rank, []).append(slot)
    return "".join(_row(rank, rows[rank]) for rank in sorted(rows, key=lambda r: (r is None, r or 0)))


def _row(rank: int | None, slots: Sequence[Slot]) -> str:
    head = tag("h3", escape("of no rank" if rank is None else f"rank {rank}"))
    return head + tag("div", "".join(_box(s) for s in slots), class_="slots")


def _box(slot: Slot) -> str:
    title = f"step {slot.step}" if slot.step >= 0 else slot.state
    size = format_bytes(slot.capacity_bytes)
    state = f"{slot.state}, {size}" if slot.step >= 0 else size
    if slot.pins:
        state += f", read by {slot.pins}"
    lines = [state, *_flush_lines(slot.flushes)]
    text = tag("b", escape(title)) + "<br>".join(escape(line) for line in lines)
    return tag("div", text, class_=f"slot {escape(slot.state)}", title=slot.image or None)


def _flush_lines(flushes: Mapping[str, str]) -> Iterator[str]:
    for tier, state in flushes.items():
        yield f"{_FLUSH_MARKS.get(state, state)} {tier}"
