"""Drawings as inline SVG: text in, text out, no library and no script.

Colours are never given as such but as classes of `page.css`, so that one drawing reads well on light and on dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape

Point = tuple[float, float]


def tag(name: str, content: str = "", /, **attributes: object) -> str:
    """An element. `class_` and `stroke_width` become `class` and `stroke-width`; None attributes are left out.

    `content` is markup: escape what people wrote.
    """
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_text(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{pairs}>{content}</{name}>"


def _text(value: object) -> str:
    """Pixels to a hundredth: more digits are noise in a file that people may open."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


@dataclass(frozen=True, slots=True)
class Scale:
    """A straight map from values to pixels."""

    low: float
    high: float
    start_px: float
    end_px: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low or 1.0
        return self.start_px + (value - self.low) / span * (self.end_px - self.start_px)

    def clamp(self, value: float) -> float:
        return self(min(max(value, self.low), self.high))

    def ticks(self, count: int = 6) -> list[float]:
        """About `count` round numbers that lie in the range."""
        step = _round_step((self.high - self.low) / max(count, 1))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]


def _round_step(rough: float) -> float:
    """1, 2 or 5 times a power of ten, not below `rough`."""
    if rough <= 0 or not math.isfinite(rough):
        return 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))


@dataclass(slots=True)
class Drawing:
    """Marks in the order they are painted."""

    width: float
    height: float
    title: str
    marks: list[str] = field(default_factory=list)
    kind: str = ""
    """Its class in `page.css`."""

    def add(self, *marks: str) -> None:
        self.marks += marks

    def rect(self, x: float, y: float, width: float, height: float, *, class_: str, note: str = "") -> None:
        """A rectangle; `note` shows when the pointer rests on it."""
        self.add(tag("rect", _note(note), x=x, y=y, width=max(width, 0.0), height=height, class_=class_))

    def line(self, a: Point, b: Point, *, class_: str) -> None:
        self.add(tag("line", x1=a[0], y1=a[1], x2=b[0], y2=b[1], class_=class_))

    def dot(self, at: Point, radius: float, *, class_: str, note: str = "") -> None:
        self.add(tag("circle", _note(note), cx=at[0], cy=at[1], r=radius, class_=class_))

    def path(self, points: Iterable[Point], *, class_: str) -> None:
        text = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        if text:
            self.add(tag("path", d=f"M{text}", class_=class_))

    def text(self, at: Point, words: str, *, class_: str = "", anchor: str = "start") -> None:
        self.add(tag("text", escape(words), x=at[0], y=at[1], class_=class_ or None, text_anchor=anchor))

    def render(self) -> str:
        box = f"0 0 {_text(float(self.width))} {_text(float(self.height))}"
        head = tag("title", escape(self.title))
        return tag(
            "svg", head + "".join(self.marks), viewBox=box, role="img", aria_label=self.title, class_=self.kind or None
        )


def _note(words: str) -> str:
    return tag("title", escape(words)) if words else ""


def axis_below(drawing: Drawing, x: Scale, y_px: float, *, unit: str, grid_to_px: float) -> None:
    """Numbers below the drawing, their unit at the left edge, and faint lines up to `grid_to_px`."""
    drawing.text((8, y_px + 16), unit, class_="tick")
    for value in x.ticks(10):
        drawing.line((x(value), y_px), (x(value), grid_to_px), class_="grid")
        drawing.text((x(value), y_px + 16), f"{value:g}", class_="tick", anchor="middle")


def axis_left(drawing: Drawing, y: Scale, x_px: float, *, grid_to_px: float, count: int = 5) -> None:
    """Numbers at the left and faint lines to `grid_to_px`."""
    for value in y.ticks(count):
        drawing.line((x_px, y(value)), (grid_to_px, y(value)), class_="grid")
        drawing.text((x_px - 8, y(value) + 4), f"{value:g}", class_="tick", anchor="end")
