"""A small bar chart: one bar per value, oldest first, the number of the first and of the last below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from holdfast.report.svg import Drawing, Scale

_WIDTH, _HEIGHT = 460.0, 132.0
_LEFT, _RIGHT, _TOP, _BELOW = 54.0, _WIDTH - 6.0, 12.0, _HEIGHT - 22.0
_WIDEST = 26.0


@dataclass(frozen=True, slots=True)
class Bar:
    """A value with its label; `kind` is its colour class, `note` shows when the pointer rests on it."""

    label: str
    value: float
    kind: str = "run"
    note: str = ""


def bar_chart(title: str, bars: Sequence[Bar], *, unit: str, room_for: int = 0) -> str:
    """The chart. A value that is no number is drawn as nothing; `room_for` so many bars the width is made."""
    drawing = Drawing(_WIDTH, _HEIGHT, title, kind="small")
    heights = [b.value if math.isfinite(b.value) else 0.0 for b in bars]
    y = Scale(0.0, max(heights, default=0.0) * 1.05 or 1.0, _BELOW, _TOP)
    for value in y.ticks(3):
        drawing.line((_LEFT, y(value)), (_RIGHT, y(value)), class_="grid")
        words = f"{value:.4g} {unit}" if value else "0"
        drawing.text((_LEFT - 6, y(value) + 4), words, class_="tick", anchor="end")
    pitch = min((_RIGHT - _LEFT) / max(len(bars), room_for, 1), _WIDEST)
    for i, (bar, height) in enumerate(zip(bars, heights, strict=True)):
        top = min(y(height), _BELOW - 1.0)  # nothing is shown as nothing, little as a line
        drawing.rect(_LEFT + i * pitch, top, max(pitch - 1.0, 1.0), _BELOW - top, class_=bar.kind, note=bar.note)
    if bars:
        last = _LEFT + (len(bars) - 1) * pitch
        drawing.text((_LEFT, _HEIGHT - 6), bars[0].label, class_="tick")
        if last - _LEFT > 7.0 * (len(bars[0].label) + len(bars[-1].label)):
            drawing.text((last + pitch, _HEIGHT - 6), bars[-1].label, class_="tick", anchor="end")
    return drawing.render()
