"""The agent's `/`: its status as a page a person can read, without scripts or assets."""

from __future__ import annotations

import html
from typing import Any

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color-scheme:light dark}"
    "table{border-collapse:collapse;margin:.5rem 0 1.5rem}td,th{padding:.2rem .8rem;text-align:left;"
    "border-bottom:1px solid #8884}th{font-weight:600}"
)


def render_page(status: dict[str, Any]) -> str:
    """One HTML page: a heading, the plain facts, and a table for every list in the status."""
    facts = {k: v for k, v in status.items() if not isinstance(v, list)}
    parts = [_table([{"": k, " ": v} for k, v in facts.items()])]
    for name, rows in ((k, v) for k, v in status.items() if isinstance(v, list)):
        parts.append(f"<h2>{html.escape(name)}</h2>" + (_table(rows) if rows else "<p>none</p>"))
    title = html.escape(f"Holdfast agent of {status.get('run', '?')}")
    body = "".join(parts)
    return f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>{body}"


def _table(rows: list[Any]) -> str:
    rows = [r if isinstance(r, dict) else {"": r} for r in rows]
    heads = list(dict.fromkeys(k for r in rows for k in r))
    head = "".join(f"<th>{html.escape(str(h))}" for h in heads)
    lines = ("".join(f"<td>{html.escape(_text(r.get(h, '')))}" for h in heads) for r in rows)
    return f"<table><tr>{head}" + "".join(f"<tr>{line}" for line in lines) + "</table>"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_text(v)}" for k, v in value.items())
    return ", ".join(map(_text, value)) if isinstance(value, (list, tuple)) else str(value)
