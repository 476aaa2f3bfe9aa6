"""When failed saves end training. Pure."""

from __future__ import annotations

from holdfast.model.identity import CheckpointId

_REMEMBERED = 1024


class Patience:
    """Counts failed saves in a row, for memory and for each tier of its own: where a step is not due it says nothing.

    Invariant: a step counts once per place, by the first that is known of it; in the order in which that becomes known.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[CheckpointId, str], None] = {}
        self._in_a_row: dict[str, int] = {}

    def note(self, checkpoint: CheckpointId, place: str, *, failed: bool) -> None:
        """What came of a step at a place."""
        if (checkpoint, place) in self._known:
            return
        self._known[checkpoint, place] = None
        while len(self._known) > _REMEMBERED:
            del self._known[next(iter(self._known))]
        self._in_a_row[place] = self._in_a_row.get(place, 0) + 1 if failed else 0

    def over(self, place: str, limit: int) -> bool:
        """Whether `limit` saves in a row failed there; 0: never."""
        return 0 < limit <= self._in_a_row.get(place, 0)

    def begin_anew(self) -> None:
        """What failed was told."""
        self._in_a_row.clear()
