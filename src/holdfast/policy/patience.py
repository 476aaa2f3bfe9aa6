"""When failed saves end training. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from holdfast.model.identity import CheckpointId

_REMEMBERED = 512


class Patience:
    """Counts failed saves in a row, for memory and for each tier of its own: where a step is not due it says nothing.

    Invariant: a step counts once, by the first that is known of all of it; in the order in which that becomes known.
    """

    def __init__(self) -> None:
        self._known: deque[CheckpointId] = deque(maxlen=_REMEMBERED)
        self._in_a_row: dict[str, int] = {}

    def note(self, checkpoint: CheckpointId, failed: Mapping[str, bool]) -> None:
        """What came of a step, by place."""
        if checkpoint in self._known:
            return
        self._known.append(checkpoint)
        for place, bad in failed.items():
            self._in_a_row[place] = self._in_a_row.get(place, 0) + 1 if bad else 0

    def over(self, limit: int) -> bool:
        """Whether `limit` saves in a row failed at one place; 0: never."""
        return 0 < limit <= max(self._in_a_row.values(), default=0)

    def begin_anew(self) -> None:
        """What failed was told."""
        self._in_a_row.clear()
