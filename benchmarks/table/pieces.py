"""The table in pieces: each is measured in one go, and the record has it whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from benchmarks.table.columns import LOADING, SAVING
from benchmarks.table.roster import ENTRIES, Entry

_QUICK_BESIDE = 5
_KINDS = {
    "save": {"save", *(c.key for c in SAVING)},
    "load": {"load", *(c.key for c in LOADING)},
}
_QUICK: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "tensors": (("dcp-thread-best",), ()),
    "fsdp2": (("dcp-thread-best",), ("dcp-best",)),
    "ddp": (("dcp-thread-best",), ()),
}
"""A quick run takes all ways with the transformer, and with the other states these to save and to load."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Ways to save (`threads` torch threads) or to load one state, measured beside ours."""

    state: str
    kind: str
    threads: int
    keys: tuple[str, ...]

    @property
    def name(self) -> str:
        setting = f"/{self.threads}" if self.kind == "save" else ""
        return f"{self.state}/{self.kind}{setting}: {' '.join(self.keys)}"

    def cell(self, key: str) -> str:
        """The key of a way's cell in the record."""
        return f"{self.state}/{self.kind}/{f'{self.threads}/' if self.kind == 'save' else ''}{key}"

    def without(self, keys: Sequence[str]) -> Piece:
        return replace(self, keys=tuple(k for k in self.keys if k not in keys))


def pieces(states: Sequence[str], only: Sequence[str], *, quick: bool) -> Iterator[Piece]:
    """What is asked for: all without `states` and `only`. `only` has columns, peers, or COLUMN/PEER."""
    for state in states or ENTRIES:
        entry = _quick(state) if quick else ENTRIES[state]
        for threads in sorted({threads for threads, _ in entry.saves}):
            ways = [way for t, way in entry.saves if t == threads and _asked(only, "save", way)]
            for start in range(0, len(ways), entry.beside):
                yield Piece(state, "save", threads, tuple(ways[start : start + entry.beside]))
        loads = tuple(way for way in entry.loads if _asked(only, "load", way))
        if loads:
            yield Piece(state, "load", 0, loads)


def _asked(only: Sequence[str], kind: str, way: str) -> bool:
    return not only or any(all(part == way or part in _KINDS[kind] for part in o.split("/")) for o in only)


def _quick(state: str) -> Entry:
    """Fewer ways, one number of threads, more beside each other: small states take no room."""
    entry = ENTRIES[state]
    saves, loads = _QUICK.get(state, (tuple(way for t, way in entry.saves if t == 1), entry.loads))
    return Entry(tuple((1, way) for way in saves), loads, beside=_QUICK_BESIDE)
