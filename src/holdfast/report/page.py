"""One self-contained HTML page: nothing comes from elsewhere; readable on light, on dark and on paper."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from typing import Any

from holdfast.report.svg import tag


@dataclass(frozen=True, slots=True)
class Card:
    """One number that matters: what it is, its value, and what to know about it."""

    label: str
    value: str
    note: str = ""


@dataclass(slots=True)
class Page:
    """Title, verdict and sections, in the order they are added."""

    title: str
    verdict: str
    lead: str
    good: bool = True
    parts: list[str] = field(default_factory=list)
    tone: str = ""
    """Class of the verdict; empty: "bad" where it is not good."""
    refresh_s: int = 0
    """The browser loads the page again after so long; 0: it does not."""

    def add(self, *markup: str) -> None:
        self.parts += markup

    def section(self, heading: str, *markup: str) -> None:
        self.add(tag("section", tag("h2", escape(heading)) + "".join(markup)))

    def render(self) -> str:
        style = resources.files("holdfast.report").joinpath("page.css").read_text()
        head = (
            '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
            '<meta name="color-scheme" content="light dark">'
        )
        if self.refresh_s:
            head += f'<meta http-equiv="refresh" content="{self.refresh_s}">'
        head += tag("title", escape(self.title)) + tag("style", style)
        banner = tag("p", escape(self.title), class_="over")
        banner += tag("h1", escape(self.verdict), class_=self.tone or (None if self.good else "bad"))
        banner += tag("p", escape(self.lead), class_="lead")
        body = tag("header", banner) + "".join(self.parts)
        return "<!doctype html>\n" + tag("html", tag("head", head) + tag("body", tag("main", body)), lang="en") + "\n"


def paragraph(words: str) -> str:
    """A paragraph of plain words."""
    return tag("p", escape(words))


def cards(items: Iterable[Card], *, small: bool = False) -> str:
    """Numbers side by side; `small`: four in a row where there is room for it, else three."""
    return tag("div", "".join(_card(item) for item in items), class_="cards small" if small else "cards")


def _card(card: Card) -> str:
    note = tag("small", escape(card.note)) if card.note else ""
    return tag("div", tag("span", escape(card.label)) + tag("b", escape(card.value)) + note, class_="card")


def pill(words: str, kind: str) -> str:
    """A word on a coloured ground: `kind` is ok, warn, bad or idle."""
    return tag("span", escape(words), class_=f"pill {kind}")


def callout(kind: str, what: str, todo: str = "") -> str:
    """Something to be noticed, and what to do about it."""
    return tag("div", tag("b", escape(what)) + (tag("p", escape(todo)) if todo else ""), class_=f"callout {kind}")


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Names and their values, one pair a line."""
    pairs = (tag("dt", escape(name)) + tag("dd", escape(value)) for name, value in rows)
    return tag("dl", "".join(pairs), class_="facts")


def block(heading: str, *markup: str, mark: str = "") -> str:
    """A box with a heading and, beside it, a mark such as a `pill`."""
    return tag("div", tag("h3", escape(heading) + mark) + "".join(markup), class_="block")


def blocks(items: Iterable[str]) -> str:
    """Boxes or drawings side by side, as many as fit."""
    return tag("div", "".join(items), class_="blocks")


def figure(drawing: str, caption: str = "", key: Sequence[tuple[str, str]] = ()) -> str:
    """A drawing with its caption and, for each (class, words), what a colour means."""
    swatches = "".join(tag("span", tag("i", class_=f"swatch {kind}") + escape(words)) for kind, words in key)
    legend = tag("div", swatches, class_="key") if key else ""
    words = tag("figcaption", escape(caption)) if caption else ""
    return tag("figure", legend + tag("div", drawing, class_="scroll") + words)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows of text; the first cell of each names the row, and cells that begin with a digit align right."""
    top = tag("thead", tag("tr", "".join(tag("th", escape(cell), scope="col") for cell in head)))
    body = "".join(tag("tr", _cells(row)) for row in rows)
    return tag("div", tag("table", top + tag("tbody", body)), class_="scroll")


def _cells(row: Sequence[str]) -> str:
    first = tag("th", escape(row[0]), scope="row")
    return first + "".join(tag("td", escape(cell), class_="number" if cell[:1].isdigit() else None) for cell in row[1:])


def listing(text: str) -> str:
    """Text as a terminal shows it."""
    return tag("pre", escape(text))


def data(name: str, value: Any) -> str:
    """Values for programs, inside the page. `<` is written so that no value can end the element."""
    text = json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
    return tag("script", text, type="application/json", id=name)
