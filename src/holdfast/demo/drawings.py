"""The demo's drawings: losses of both runs, the whole timeline, and each kill from near."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.demo.facts import Flush, Interruption, Life, Pass, RunFacts
from holdfast.demo.story import NODE_LOST
from holdfast.report.svg import Drawing, Scale, axis_below, axis_left
from holdfast.units import format_bytes, format_seconds

_WIDTH = 1032.0
_LEFT, _RIGHT = 72.0, _WIDTH - 16.0
_LANE = 18.0


def losses(reference: RunFacts, run: RunFacts) -> str:
    """Both curves, the interrupted one on top: where they are equal, the wide one is a rim around the thin one."""
    expected, found = reference.curve(), run.curve()
    values = [value for _, value in expected + found]
    drawing = Drawing(_WIDTH, 380, "Loss by step, of both runs")
    x = Scale(0, max((step for step, _ in expected), default=1), _LEFT, _RIGHT)
    y = Scale(min(values, default=0) - 0.1, max(values, default=1) + 0.1, 336, 40)
    axis_left(drawing, y, _LEFT, grid_to_px=_RIGHT)
    axis_below(drawing, x, 336, unit="step", grid_to_px=330)
    drawing.text((8, 20), "loss, nats per byte", class_="soft")
    drawing.path(((x(s), y(v)) for s, v in expected), class_="pale")
    drawing.path(((x(s), y(v)) for s, v in found), class_="run")
    again = _trained_again(run)
    for step, value in found:
        if step in again:
            drawing.dot((x(step), y(value)), 3.5, class_="again", note=f"step {step} was trained {again[step]} times")
    for number, cut in enumerate(run.interruptions, 1):
        drawing.line((x(cut.reached + 1), 336), (x(cut.reached + 1), 34), class_="kill")
        _badge(drawing, x(cut.reached + 1), 26, number, cut.scene)
    return drawing.render()


def timeline(run: RunFacts) -> str:
    """Above, how far training had come; below, what each part did. All over the same seconds."""
    drawing = Drawing(_WIDTH, 420, "Timeline of the interrupted run")
    x = Scale(0, run.ended, _LEFT, _RIGHT)
    y = Scale(0, max((p.step for p in run.passes), default=1), 262, 40)
    axis_left(drawing, y, _LEFT, grid_to_px=_RIGHT)
    drawing.text((8, 20), "step", class_="soft")
    lanes = _Lanes(drawing, x, 284)
    lanes.paint()
    axis_below(drawing, x, 390, unit="seconds", grid_to_px=386)
    for cut in run.interruptions:
        drawing.rect(x(cut.t), 34, x(cut.life.training) - x(cut.t), 348, class_="down")
    for life in run.lives:
        mine = [p for p in run.passes if p.life == life.number and p.rank == 0]
        drawing.path(((x(p.end), y(p.step)) for p in mine if p.end is not None), class_="run")
    for cut in run.interruptions:
        _fall(drawing, cut, x, y)
    _fill(lanes, run)
    for number, cut in enumerate(run.interruptions, 1):
        drawing.line((x(cut.t), 382), (x(cut.t), 34), class_="kill")
        _badge(drawing, x(cut.t), 26, number, cut.scene)
    return drawing.render()


def _fall(drawing: Drawing, cut: Interruption, x: Scale, y: Scale) -> None:
    """From the step that was reached to the one that was loaded."""
    loaded = -1 if cut.life.step is None else cut.life.step
    reached = (x(cut.t), y(cut.reached))
    corner = (x(cut.life.training), y(cut.reached))
    drawing.line(reached, corner, class_="fall")
    drawing.line(corner, (x(cut.life.training), y(loaded)), class_="fall")
    words = f"{cut.lost_steps} step{'s' * (cut.lost_steps != 1)} lost" if cut.lost_steps else "nothing lost"
    drawing.text((corner[0] + 6, y(loaded) + 14), words, class_="soft")


def close_up(run: RunFacts, number: int, killed_how: str) -> str:
    """The seconds around one kill, wide enough to see flushes, stalls and the load."""
    cut = run.interruptions[number - 1]
    # A share of the width before and after, whatever the machine takes to come back.
    before, after = 0.2 * cut.recovery_s, 0.3 * cut.recovery_s
    drawing = Drawing(_WIDTH, 182, f"Around kill {number}, {cut.scene}")
    x = Scale(cut.t - before, cut.life.training + after, _LEFT, _RIGHT)
    lanes = _Lanes(drawing, x, 50)
    lanes.paint()
    seconds = Scale(-before, x.high - cut.t, _LEFT, _RIGHT)
    axis_below(drawing, seconds, 156, unit="seconds", grid_to_px=152)
    drawing.rect(x(cut.t), 34, x(cut.life.training) - x(cut.t), 118, class_="down")
    _fill(lanes, run)
    _recovery(lanes, cut)
    drawing.line((x(cut.t), 152), (x(cut.t), 28), class_="kill")
    _badge(drawing, x(cut.t), 20, number, f"{cut.scene}: {killed_how}, step {cut.step}")
    return drawing.render()


@dataclass(slots=True)
class _Lanes:
    """Rows of bars over one scale of time; what lies outside the scale is left out."""

    drawing: Drawing
    x: Scale
    top_px: float
    names: tuple[str, ...] = ("rank 0", "rank 1", "memory", "disk")

    def paint(self) -> None:
        for name in self.names:
            self.drawing.rect(_LEFT, self.row(name), _RIGHT - _LEFT, _LANE, class_="lane")
            self.drawing.text((8, self.row(name) + 13), name, class_="soft")

    def row(self, name: str) -> float:
        return self.top_px + self.names.index(name) * (_LANE + 8)

    def bar(self, name: str, span: tuple[float, float], kind: str, note: str) -> None:
        if span[1] >= self.x.low and span[0] <= self.x.high:
            left, right = self.x.clamp(span[0]), self.x.clamp(span[1])
            # A gap parts neighbours, and what is shorter than a pixel still shows.
            self.drawing.rect(left, self.row(name), max(right - left - 0.6, 1.2), _LANE, class_=kind, note=note)


def _fill(lanes: _Lanes, run: RunFacts) -> None:
    """Steps, saves and flushes into their lanes."""
    for p in run.passes:
        end = p.end if p.end is not None else _cut_at(run, p)
        kind = "kill" if p.end is None else "again" if _is_again(run, p) else "run"
        note = f"step {p.step}, {'cut by the kill' if p.end is None else format_seconds(end - p.begin)}"
        lanes.bar(f"rank {p.rank}", (p.begin, end), kind, note)
    for save in run.saves:
        note = f"step {save.step} of rank {save.rank}: training waited {format_seconds(save.stall_s)}"
        lanes.bar("memory", (save.t - save.stall_s, save.t), "memory", note)
    for flush in run.flushes:
        size, took = format_bytes(flush.size_bytes), format_seconds(flush.flush_s)
        lanes.bar(
            "disk", (_begun(run, flush), flush.committed), "disk", f"step {flush.step}: {size}, {took} after the save"
        )


def _begun(run: RunFacts, flush: Flush) -> float:
    """When the flush may have begun: with the save if it was due, else with what made the agent promote it."""
    if flush.due:
        return flush.saved
    ends = [cut.t for cut in run.interruptions] + [p.end for p in run.passes if p.end is not None]
    return max((t for t in ends if flush.saved < t < flush.committed), default=flush.saved)


def _recovery(lanes: _Lanes, cut: Interruption) -> None:
    """The way back, on both ranks: the launcher notices, Python and torch start, the agent is met, the load."""
    x, life = lanes.x, cut.life
    for name, start, end in recovery_parts(cut):
        kind = life.source if name == "load" else "wait"
        for row in ("rank 0", "rank 1"):
            lanes.bar(row, (start, end), kind, f"{name}: {format_seconds(end - start)}")
        if x(end) - x(start) > 6.5 * len(name) + 12:
            lanes.drawing.text((x(start) + 6, lanes.row("rank 0") + 13), name)
    lanes.drawing.text(
        (x(life.training) - 6, lanes.row("rank 0") - 4), _load_words(life), class_=life.source, anchor="end"
    )


def recovery_parts(cut: Interruption) -> list[tuple[str, float, float]]:
    """What the time between the kill and the first new step went to."""
    life = cut.life
    first = "torchrun starts" if cut.scene == NODE_LOST else "torchrun notices"
    return [
        (first, cut.t, life.started),
        ("Python, torch, model", life.started, life.ready),
        ("agent", life.ready, life.attached),
        ("load", life.attached, life.loaded),
    ]


def _load_words(life: Life) -> str:
    return f"step {life.step} from {life.source}, {format_bytes(life.loaded_bytes)} in {format_seconds(life.load_s)}"


def _badge(drawing: Drawing, x: float, y: float, number: int, words: str) -> None:
    drawing.dot((x, y - 4), 9, class_="kill")
    drawing.text((x, y), str(number), class_="number", anchor="middle")
    if words:
        drawing.text((x + 14, y), words, class_="kill")


def _trained_again(run: RunFacts) -> dict[int, int]:
    times: dict[int, int] = {}
    for p in run.passes:
        if p.rank == 0 and p.end is not None:
            times[p.step] = times.get(p.step, 0) + 1
    return {step: n for step, n in times.items() if n > 1}


def _is_again(run: RunFacts, this: Pass) -> bool:
    return any(
        p.step == this.step and p.rank == this.rank and p.life < this.life and p.end is not None for p in run.passes
    )


def _cut_at(run: RunFacts, p: Pass) -> float:
    """A step that has no end ended with the kill."""
    return min((c.t for c in run.interruptions if c.t >= p.begin), default=p.begin)
