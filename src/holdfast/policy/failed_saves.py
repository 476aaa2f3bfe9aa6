"""When failed saves end training. Pure."""

from __future__ import annotations

from holdfast.model.identity import CheckpointId

_REMEMBERED = 1024
"""Steps per place: more than an agent tells of again, as when an old one is pruned."""


class FailedSaves:
    """Counts failed saves in a row, for memory and for each tier of its own: where a step is not due it says nothing.

    Invariant: a step counts once per place, by the first that is known of it; in the order in which that becomes known.
    """

    def __init__(self) -> None:
        self._known: dict[str, dict[CheckpointId, None]] = {}
        self._in_a_row: dict[str, int] = {}

    def note(self, checkpoint: CheckpointId, place: str, *, failed: bool) -> None:
        """What came of a step at a place."""
        known = self._known.setdefault(place, {})
        if checkpoint in known:
            return
        known[checkpoint] = None
        while len(known) > _REMEMBERED:
            del known[next(iter(known))]
        self._in_a_row[place] = self._in_a_row.get(place, 0) + 1 if failed else 0

    def over(self, place: str, limit: int) -> bool:
        """Whether `limit` saves in a row failed there; 0: never."""
        return 0 < limit <= self._in_a_row.get(place, 0)

    def begin_anew(self) -> None:
        """What failed was told."""
        self._in_a_row.clear()
